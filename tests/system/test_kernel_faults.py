"""Kernels that lack something or refuse it, mounts that others are in, and very many readers: what works does, what does not is said.

What a kernel lacks is taken out of the worker, which is all that would notice; a profile's refusals are the kernel's own.
"""

import contextlib
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.system.handover import another, daemon, kill, status, worker
from tests.system.readers import FILES, content
from tests.system.world import World, missing, mounts_below, require, tool, wait_until

NAME: Final = "large/3"
MODES: Final = ("fuse", "kernel")
_ACCESS: Final = (1, 10, 11, 12)
_MOUNT_ERROR: Final = 10
_UNSUPPORTED: Final = 4

_LACKING: Final = """
import errno, os, sys
from pathlib import Path
from imagefs import syscalls
from imagefs.mount import kernel, loop
lacks = {lacks!r}
string = syscalls.fsconfig_string
def no_files(context, key, value):
    if key == "source" and value.startswith(b"/") and not value.startswith(b"/dev/loop"):
        raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
    string(context, key, value)
def no_layers(*_, **__):
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
if "files" in lacks:
    syscalls.fsconfig_string = no_files
if "loop devices" in lacks:
    loop.CONTROL = Path("/dev/none")
if "data-only layers" in lacks:
    kernel.give_layers = no_layers
from imagefs.daemon import worker
worker.main()
"""


@pytest.mark.parametrize(
    ("lacks", "mode", "said"),
    [
        (["files"], "kernel", "overlayfs over EROFS, from a loop device"),
        (["files", "loop devices"], "fuse", "EROFS: cannot mount the tree tree: Block device required"),
        (["data-only layers"], "fuse", "data-only layers: cannot mount the image at image: Invalid argument"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_what_a_kernel_lacks_is_done_in_another_way_and_said(reading_world: World, lacks: list[str], mode: str, said: str) -> None:
    require("erofs")
    world = reading_world
    point = world.root / "mnt"
    point.mkdir()
    with daemon(world, command=(world.interpreter, "-P", "-c", _LACKING.format(lacks=lacks))):
        done = world.run("mount", "test", point, "--mode", "auto")
        assert done.err.startswith(f"{mode} mode: ")
        assert said in done.err
        assert len(done.err.splitlines()) == 1
        assert status(world)["mounts"][0]["mode"] == mode
        assert (point / NAME).read_bytes() == content(NAME)
        assert bool(_loops(world)) == ("loop device" in said)
        # The next worker finds the same.
        pid = worker(world)
        kill(pid)
        another(world, pid)
        assert (point / "large/4").read_bytes() == content("large/4")
        if mode == "fuse":
            (world.root / "other").mkdir()
            refused = world.attempt("mount", "test", world.root / "other", "--mode", "kernel")
            assert refused.status == _UNSUPPORTED
            assert said in refused.err
            assert "--mode fuse works" in refused.err
        world.umount(point)
    assert mounts_below(world.root) == []
    wait_until(lambda: not _loops(world), "its loop device to be let go")


def _loops(world: World) -> list[str]:
    """Return the loop devices that show files of this world's."""
    found = json.loads(tool("losetup", "--list", "--json") or b'{"loopdevices": []}')["loopdevices"]
    return [one["name"] for one in found if str(one["back-file"]).startswith(f"{world.root}/")]


# -- refused ------------------------------------------------------------------------------------------------------------------------------

_CALLS: Final = {
    "mount": {"x86_64": 165, "aarch64": 40},
    "fsopen": {"x86_64": 430, "aarch64": 430},
    "unshare": {"x86_64": 272, "aarch64": 97},
}

_PROFILE: Final = """
import ctypes, os, struct, sys
numbers = [int(number) for number in sys.argv[1].split(",")]
# A filter that answers some calls with EPERM, as a container's profile does.
program = struct.pack("=HBBI", 0x20, 0, 0, 0)
for number in numbers:
    program += struct.pack("=HBBIHBBI", 0x15, 0, 1, number, 0x06, 0, 0, 0x00050001)
program += struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(program)
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HP", len(program) // 8, ctypes.addressof(code)), 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


def _under_a_profile(world: World, calls: Sequence[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command, and the daemon that it starts, where these calls are refused."""
    machine = platform.machine()
    if machine not in _CALLS["mount"]:
        missing(f"the numbers of the calls on {machine} are not known here")
    numbers = ",".join(str(_CALLS[call][machine]) for call in calls)
    command = [sys.executable, "-c", _PROFILE, numbers, *world.command, *map(str, arguments)]
    return subprocess.run(command, env=world.env, cwd=world.root, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("call", ["fsopen", "unshare"])
def test_under_a_profile_that_forbids_kernel_mode_it_is_fuse_mode_and_said(reading_world: World, call: str) -> None:
    require("erofs")
    world = reading_world
    (world.root / "mnt").mkdir()
    done = _under_a_profile(world, [call], "mount", "test", "mnt", "--mode", "auto")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("fuse mode: kernel mode cannot be on this host: mounting: refused although CAP_SYS_ADMIN is held")
    assert (world.root / "mnt" / NAME).read_bytes() == content(NAME)
    (world.root / "other").mkdir()
    refused = world.attempt("mount", "test", "other", "--mode", "kernel")
    assert refused.status == _UNSUPPORTED
    assert "refused although CAP_SYS_ADMIN is held" in refused.err
    world.umount(world.root / "mnt")
    wait_until(lambda: not world.pids(), "the daemon to end with its last mount")


def test_under_a_profile_that_forbids_every_mount_it_is_said_what_is_missing(reading_world: World) -> None:
    world = reading_world
    (world.root / "mnt").mkdir()
    done = _under_a_profile(world, ["mount", "fsopen", "unshare"], "mount", "test", "mnt", "--mode", "auto")
    assert done.returncode in _ACCESS
    assert "Operation not permitted" in done.stderr
    assert "Traceback" not in done.stderr
    wait_until(lambda: not world.pids(), "the daemon that could not start to be gone")
    assert mounts_below(world.root) == []


# -- in use -------------------------------------------------------------------------------------------------------------------------------

_HOLDER: Final = """
import mmap, os, sys
how, path = sys.argv[1:]
if how == "directory":
    os.chdir(os.path.dirname(path))
else:
    file = open(path, "rb")
    if how == "mapping":
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        file.close()
print(flush=True)
sys.stdin.readline()
if how == "mapping":
    sys.stdout.buffer.write(mapped[:])
else:
    sys.stdout.buffer.write((open(os.path.basename(path), "rb") if how == "directory" else file).read())
"""


@pytest.mark.parametrize("mode", MODES)
def test_what_is_in_use_is_said_by_whom_and_lazily_they_finish(reading_world: World, mode: str) -> None:
    if mode == "kernel":
        require("erofs")
    world = reading_world
    point = world.mount(mode=mode)
    command = [sys.executable, "-c", _HOLDER]
    with contextlib.ExitStack() as stack:
        users = [
            stack.enter_context(subprocess.Popen([*command, how, point / NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for how in ("directory", "file", "mapping")
        ]
        for user in users:
            assert user.stdout is not None
            user.stdout.readline()
        refused = world.attempt("umount", point)
        assert refused.status == _MOUNT_ERROR
        said, hint = refused.err.splitlines()
        assert said.startswith(f"imagefs: {point} is in use by ")
        for user in users:
            assert f"({user.pid})" in said
        assert "--lazy" in hint
        assert "finish" in hint
        told = world.attempt("umount", point, "--json")
        assert told.json["error"] == {
            "type": "MountError",
            "exit_code": _MOUNT_ERROR,
            "message": said.removeprefix("imagefs: "),
            "hint": hint.strip(),
        }
        assert (point / "small/117").read_bytes() == content("small/117")
        # It is out of sight at once, and the place is free for another; who was there has all of it until it ends.
        world.run("umount", point, "--lazy")
        assert mounts_below(point) == []
        assert list(point.iterdir()) == []
        world.mount(mode=mode)
        for user in users:
            out, _ = user.communicate(b"\n", timeout=30)
            assert out == content(NAME)
            assert user.returncode == 0
        world.umount(point)
    wait_until(lambda: not world.pids(), "the daemon to end when nobody uses anything", 60)
    assert mounts_below(world.root) == []


@pytest.mark.parametrize("mode", MODES)
def test_what_others_mount_inside_or_on_top_is_said(reading_world: World, mode: str) -> None:
    if mode == "kernel":
        require("erofs")
    world = reading_world
    point = world.mount(mode=mode)
    try:
        tool("mount", "-t", "tmpfs", "none", str(point / "small"))
        refused = world.attempt("umount", point)
        assert refused.status == _MOUNT_ERROR
        assert f"{point} is in use by the mount at {point}/small" in refused.err
        tool("umount", str(point / "small"))
        tool("mount", "-t", "tmpfs", "none", str(point))
        for lazily in ([], ["--lazy"]):
            refused = world.attempt("umount", point, *lazily)
            assert refused.status == _MOUNT_ERROR
            assert f"another mount covers the image at {point}: none (tmpfs)\n  unmount that first" in refused.err
        refused = world.attempt("mount", "test", point)
        assert refused.status == _MOUNT_ERROR
        assert f"something is already mounted at {point}: none (tmpfs)" in refused.err
    finally:
        for place in mounts_below(point)[:-1]:
            tool("umount", place)
    assert (point / NAME).read_bytes() == content(NAME)
    refused = world.attempt("mount", "test", point)
    assert refused.status == _MOUNT_ERROR
    assert f"an image is already mounted at {point}\n  imagefs umount {point}" in refused.err
    world.umount(point)
    wait_until(lambda: not world.pids(), "the daemon to end with its last mount")


# -- very many ----------------------------------------------------------------------------------------------------------------------------

_SWARM: Final = """
import hashlib, json, os, random, sys
point, wanted, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
def read(seed):
    names = random.Random(seed).sample(sorted(wanted), 12)
    for name in names:
        with open(os.path.join(point, name), "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != wanted[name]:
                return 3
    return 0
children = []
for seed in range(count):
    pid = os.fork()
    if pid == 0:
        code = 4
        try:
            code = read(seed)
        finally:
            os._exit(code)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
print(json.dumps({str(code): codes.count(code) for code in set(codes)}))
"""

SWARM: Final = 400
"""Processes that read at once."""


@pytest.mark.parametrize("mode", MODES)
def test_a_fork_bomb_of_readers_is_slow_and_nothing_worse(reading_world: World, mode: str) -> None:
    if mode == "kernel":
        require("erofs")
    world = reading_world
    point = world.mount(mode=mode)
    pid = worker(world)
    wanted = {name: hashlib.sha256(content(name)).hexdigest() for name in FILES if name.startswith("small/")}
    with subprocess.Popen(
        [sys.executable, "-c", _SWARM, str(point), json.dumps(wanted), str(SWARM)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as swarm:
        rounds = 0
        while swarm.poll() is None or not rounds:
            # Whoever asks for something else meanwhile gets an answer.
            assert world.run("stats", "--json").json["worker_restarts"] == 0
            (world.root / f"other-{rounds}").mkdir()
            world.umount(world.mount(name=f"other-{rounds}", mode=mode))
            rounds += 1
        out, err = swarm.communicate(timeout=60)
    assert json.loads(out) == {"0": SWARM}, err
    assert worker(world) == pid
    figures = world.stats()
    assert figures["internal_errors"] == 0
    assert figures["rss_bytes"] < 300 << 20
    world.umount(point)
    wait_until(lambda: not world.pids(), "the daemon to end with its last mount")
