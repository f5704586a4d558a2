"""The attempt at kernel mode: it finds what works, by which means, says what does not, and leaves nothing behind."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from imagefs import syscalls
from imagefs.errors import MountError
from imagefs.mount import features
from imagefs.mount.bind import unmount
from imagefs.mount.features import (
    DATA_LAYERS,
    EROFS,
    FUSE_DEVICE,
    MOUNTING,
    ON_TOP,
    VERITY,
    WATCHING,
    Feature,
    KernelMode,
    probe,
    probe_verity,
)
from imagefs.mount.kernel import Backing
from tests.mount.kernel_place import descriptors, kernel_or_skip, loop_devices, mount_lines, names
from tests.system.world import missing, wait_until

_MS_BIND = 4096
_MS_SHARED = 1 << 20
_NAMES = [MOUNTING, FUSE_DEVICE, EROFS, DATA_LAYERS, ON_TOP, WATCHING]


@pytest.fixture
def able() -> None:
    """Skip where kernel mode cannot work."""
    kernel_or_skip()
    mode = probe()
    if not mode.ok:
        missing(f"kernel mode does not work here: {mode.reason}")


def _by_name(mode: KernelMode) -> dict[str, Feature]:
    assert [feature.name for feature in mode.features] == _NAMES
    return {feature.name: feature for feature in mode.features}


@pytest.mark.usefixtures("able")
def test_where_all_works_it_says_so_quickly_and_leaves_nothing(tmp_path: Path) -> None:
    held = descriptors(), threading.active_count()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        mode = probe(tmp_path)
        seconds.append(time.perf_counter() - start)
        assert all(feature.ok for feature in mode.features), mode
        assert mode.ok
        assert mode.reason.startswith("overlayfs over EROFS, from a ")
    assert min(seconds) < 0.05
    assert names(tmp_path) == mount_lines(tmp_path) == loop_devices(tmp_path) == []
    assert (descriptors(), threading.active_count()) == held


@pytest.mark.usefixtures("able")
def test_others_see_nothing_of_it_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    check = features._check

    def look(target: Path) -> None:
        seen.append(mount_lines(tmp_path))
        assert str(target) in Path("/proc/thread-self/mountinfo").read_text()
        check(target)

    monkeypatch.setattr(features, "_check", look)
    assert probe(tmp_path).ok
    assert seen == [[], []]


@pytest.mark.usefixtures("able")
def test_nothing_of_it_comes_back_through_a_shared_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the root of a machine with systemd is: a mere copy of the namespace would send its mounts here."""
    syscalls.mount(tmp_path, tmp_path, _MS_BIND)
    try:
        syscalls.mount(None, tmp_path, _MS_SHARED)
        before = mount_lines(tmp_path)
        seen = []
        monkeypatch.setattr(features, "_check", lambda target: seen.append(mount_lines(tmp_path)))
        assert probe(tmp_path).ok
        assert seen == [before, before]
    finally:
        unmount(tmp_path)


_KILLED = """
import sys, time
from pathlib import Path
from imagefs.mount import features
from imagefs.mount.bind import unmount
def wait(target):
    print(target, flush=True)
    time.sleep(60)
features._check = wait
features._steps = lambda folder, backing, steps=features._steps: steps(folder, features.Backing.LOOP)
features.probe(Path(sys.argv[1]))
"""


@pytest.mark.usefixtures("able")
def test_a_process_that_is_killed_in_it_leaves_no_mount_and_no_loop_device(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _KILLED, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(os.fsencode(tmp_path))
        assert loop_devices(tmp_path)
        process.kill()
        process.wait(20)
    assert mount_lines(tmp_path) == []
    wait_until(lambda: not loop_devices(tmp_path), "the loop device to go")


# -- what is missing ----------------------------------------------------------------------------------------------------------------------


def _refuse_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux before 6.12: a tree cannot be mounted from a file."""
    string = syscalls.fsconfig_string

    def before_6_12(context: int, key: str, value: bytes) -> None:
        if key == "source" and value.startswith(b"/") and not value.startswith(b"/dev/loop"):
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
        string(context, key, value)

    monkeypatch.setattr(syscalls, "fsconfig_string", before_6_12)


@pytest.mark.usefixtures("able")
def test_where_files_are_refused_a_loop_device_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse_files(monkeypatch)
    mode = probe(tmp_path)
    assert (mode.ok, mode.backing) == (True, Backing.LOOP)
    assert mode.reason == "overlayfs over EROFS, from a loop device"
    assert _by_name(mode)[EROFS].why == "mounts from a loop device; from a file, EROFS: cannot mount the tree tree: Block device required"


@pytest.mark.usefixtures("able")
def test_where_an_overlay_on_top_wants_a_loop_device_that_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kernels count EROFS from a file as a level of its own, which leaves a container's overlay none."""
    make, calls = features._overlay_on, []

    def too_deep(image: Path, target: Path) -> None:
        calls.append(image)
        if len(calls) == 1:
            raise MountError("cannot mount an overlay on one of ours: Invalid argument: maximum fs stacking depth exceeded")
        make(image, target)

    monkeypatch.setattr(features, "_overlay_on", too_deep)
    mode = probe(tmp_path)
    assert (mode.ok, mode.backing) == (True, Backing.LOOP)
    assert "stacking depth" in _by_name(mode)[EROFS].why


@pytest.mark.usefixtures("able")
def test_where_no_overlay_goes_on_top_kernel_mode_works_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_deep(image: Path, target: Path) -> None:
        raise MountError("too deep")

    monkeypatch.setattr(features, "_overlay_on", too_deep)
    mode = probe(tmp_path)
    assert (mode.ok, mode.backing, mode.reason) == (True, Backing.FILE, "overlayfs over EROFS, from a file")
    on_top = _by_name(mode)[ON_TOP]
    assert (on_top.ok, on_top.needed, on_top.why) == (False, False, "too deep")
    assert "FUSE mode" in (on_top.hint or "")


@pytest.mark.usefixtures("able")
def test_content_that_is_not_the_objects_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without attributes in EROFS shows the tree's holes."""
    lay_out = features._lay_out

    def other(folder: Path) -> None:
        lay_out(folder)
        for path in folder.glob("lazy/*/*"):
            path.write_bytes(bytes(path.stat().st_size))

    monkeypatch.setattr(features, "_lay_out", other)
    mode = probe(tmp_path)
    assert (mode.ok, mode.backing) == (False, Backing.FILE)
    assert mode.reason.startswith("data-only layers: a file has other content than its object")
    assert _by_name(mode)[ON_TOP].why == "not tried"
    assert names(tmp_path) == []


@pytest.mark.usefixtures("able")
def test_a_kernel_without_data_only_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def before_6_5(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("imagefs.mount.kernel.give_layers", before_6_5)
    mode = probe(tmp_path)
    assert not mode.ok
    assert mode.reason == "data-only layers: cannot mount the image at image: Invalid argument"
    assert _by_name(mode)[DATA_LAYERS].hint == "Linux 6.5 or newer"


@pytest.mark.usefixtures("able")
def test_without_a_fuse_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FUSE_DEVICE", str(tmp_path / "fuse"))
    mode = probe(tmp_path)
    assert not mode.ok
    assert mode.reason == f"{tmp_path}/fuse: cannot be opened: No such file or directory"
    assert "modprobe fuse" in (mode.features[1].hint or "")


# -- permission ---------------------------------------------------------------------------------------------------------------------------

_CHILD = """
import ctypes, struct, sys
from pathlib import Path
from imagefs.mount.features import probe
number = int(sys.argv[2])
if number:
    # A filter that answers one call with EPERM, as a container's profile does.
    program = struct.pack("=HBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 0, 1, number, 0x06, 0, 0, 0x00050001, 0x06, 0, 0, 0x7FFF0000)
    code = ctypes.create_string_buffer(program)
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, struct.pack("HP", 4, ctypes.addressof(code)), 0, 0) == 0
mode = probe(Path(sys.argv[1]))
print(mode.ok, mode.backing, mode.reason, sep="|")
print(mode.features[0].hint, [feature.why for feature in mode.features[2:]], sep="|")
"""


@pytest.mark.parametrize(
    ("command", "number", "reason", "hint"),
    [
        (["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"], 0, "CAP_SYS_ADMIN is not held", "run as root"),
        ([], 430, "refused although CAP_SYS_ADMIN is held", "seccomp"),
    ],
    ids=["no capability", "a profile without fsopen"],
)
@pytest.mark.usefixtures("able")
def test_what_a_user_may_not_do_is_said(tmp_path: Path, command: list[str], number: int, reason: str, hint: str) -> None:
    done = subprocess.run(
        [*command, sys.executable, "-c", _CHILD, tmp_path, str(number)], capture_output=True, text=True, timeout=30, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == f"False|None|mounting: {reason}: Operation not permitted"
    assert hint in second.split("|")[0]
    assert second.split("|")[1] == str(["not tried"] * 4)
    assert names(tmp_path) == []


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    kernel_or_skip()
    with pytest.raises(MountError, match=r"cannot try kernel mode in .*none: No such file or directory"):
        probe(tmp_path / "none")


# -- fs-verity ----------------------------------------------------------------------------------------------------------------------------


def test_verity_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    held = descriptors()
    found = probe_verity(tmp_path)
    assert descriptors() == held
    assert (found.name, found.needed) == (VERITY, False)
    assert str(tmp_path) in found.why
    assert found.ok == (found.hint is None)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("number", "ok"), [(0, True), (errno.ENOTTY, False), (errno.EOPNOTSUPP, False)])
def test_what_verity_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, ok: bool) -> None:
    seen = []

    def answer(descriptor: int, request: int, argument: bytes) -> int:
        seen.append((request, len(argument)))
        assert os.get_blocking(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", answer)
    held = descriptors()
    assert probe_verity(tmp_path).ok is ok
    assert descriptors() == held
    assert seen == [(0x40806685, 128)]
    assert names(tmp_path) == []


def test_verity_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(MountError, match=r"cannot try fs-verity in .*none: No such file"):
        probe_verity(tmp_path / "none")
