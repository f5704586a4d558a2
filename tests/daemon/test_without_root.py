"""A user without root mounts, reads and unmounts through a daemon of the mount's own."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import imagefs
from imagefs.mount.mountinfo import mount_at
from tests.daemon.place import Place
from tests.fuse.images import FRAME, noise
from tests.system.world import missing, wait_until
from tests.system.world import require as require_feature

USER = 65534
_ROOTS = [str(Path(imagefs.__file__).parents[1]), sysconfig.get_path("platlib")]
DATA = noise(3 * FRAME)
_SCRIPT = """
import sys
from pathlib import Path
from imagefs.config import Config
from imagefs.daemon import client
from imagefs.errors import ImageFSError
root = Path(sys.argv[1])
config = Config(store=f"file://{root}/store", cache=root / "cache", runtime=root / "run", log_level="info")
point = root / "mnt"
at = client.home(client.absolute(point))
try:
    exec(sys.argv[2])
except ImageFSError as error:
    print(type(error).__name__, error.message, error.hint)
"""


def _interpreter() -> str:
    """Return an interpreter that the user may run: one below root's home is root's alone."""
    if all(path.stat().st_mode & 0o001 for path in Path(sys.executable).resolve().parents):
        return sys.executable
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    if not Path(system).exists():
        missing(f"{sys.executable} is out of reach for other users, and there is no {system}")
    return system


class UserPlace(Place):
    """A place that belongs to another user, and what that user does there."""

    def run(self, code: str) -> str:
        """Run code as the user; return what it prints."""
        done = subprocess.run(
            [_interpreter(), "-c", _SCRIPT, str(self.root), code],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(_ROOTS)},
            user=USER,
            group=USER,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def user_pid(self) -> int:
        """Return the process id of the user's daemon."""
        return int(self.run("print(client.status(config, at=at)['pid'])"))


@pytest.fixture
def user(tmp_path: Path) -> Iterator[UserPlace]:
    """A place of the user's with an image ``test:latest`` and an empty directory ``mnt``."""
    require_feature("root", "becomes another user")
    require_feature("fusermount3", "mounts without root")
    with _fuse_for_everybody():
        yield from _user_place(tmp_path)


@contextlib.contextmanager
def _fuse_for_everybody() -> Iterator[None]:
    """Give ``/dev/fuse`` the mode that distributions give it, where a bare machine has it for root alone."""
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    device.chmod(mode | 0o666)
    try:
        yield
    finally:
        device.chmod(mode)


def _user_place(tmp_path: Path) -> Iterator[UserPlace]:
    place = UserPlace(tmp_path / "place")
    maker = place.maker()
    maker.file("dir/big", DATA)
    maker.file("small", b"small\n")
    maker.publish()
    place.mountpoint()
    for path in [place.root, *place.root.rglob("*")]:
        os.chown(path, USER, USER)
    for parent in place.root.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    yield place
    place.run("client.running(config, at=at) and client.stop(config, at=at)")
    assert place.close() == []


def test_mount_read_umount(user: UserPlace) -> None:
    assert user.run("print(client.mount(config, mountpoint=point, ref='test')['mode'])") == "fuse"
    entry = mount_at(user.root / "mnt")
    assert entry is not None
    assert {"ro", "nosuid", "nodev"} <= entry.options
    code = "import hashlib; print(hashlib.sha256((point / 'dir/big').read_bytes()).hexdigest(), sorted(x.name for x in point.iterdir()))"
    found = user.run(code)
    assert found.endswith("['dir', 'small']")
    assert found == user.run(code)
    assert user.run("print((point / 'dir/..').stat().st_ino == point.stat().st_ino == 1)") == "True"
    assert "MountError" in user.run("client.mount(config, mountpoint=point, ref='test')")
    assert user.run("print(client.umount(config, point)['stopping'], client.running(config, at=at))") == "True False"
    assert user.mounted() == []


def test_a_failed_mount_leaves_no_daemon(user: UserPlace) -> None:
    assert "NotFoundError" in user.run("client.mount(config, mountpoint=point, ref='nothing')")
    assert user.mounted() == []
    wait_until(lambda: user.run("print(client.running(config, at=at))") == "False", "the daemon to end")


def test_fusermount_ends_the_daemon(user: UserPlace) -> None:
    user.run("client.mount(config, mountpoint=point, ref='test')")
    user.run("import subprocess; subprocess.run(['fusermount3', '-u', str(point)], check=True)")
    wait_until(lambda: user.run("print(client.running(config, at=at))") == "False", "the daemon to end")
    assert user.run("print(client.mount(config, mountpoint=point, ref='test')['mode'])") == "fuse"


def test_a_killed_daemon_is_recovered(user: UserPlace) -> None:
    user.run("client.mount(config, mountpoint=point, ref='test')")
    pid = user.user_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: user.run("print(client.running(config, at=at))") == "False", "the daemon to die")
    assert mount_at(user.root / "mnt") is not None
    assert user.run("print(client.mount(config, mountpoint=point, ref='test')['mode'], (point / 'small').read_text())") == "fuse small"


def test_top_and_stats_ask_the_daemons_of_all_mounts(user: UserPlace) -> None:
    code = """
import imagefs
sys.path.insert(0, str(Path(imagefs.__file__).parents[1] / "tools"))
from imagefs_cli.main import main
other = root / "other"
other.mkdir(exist_ok=True)
place = ["--store", config.store, "--cache", str(config.cache), "--runtime", str(config.runtime)]
print(main(["top", "--once", "--every", "0.1", *place]))
for target in (point, other):
    client.mount(config, mountpoint=target, ref="test")
main(["top", "--once", "--every", "0.1", *place])
(point / "dir/big").read_bytes()
main(["stats", "--count", "1", "--watch", "0.1", *place])
client.umount(config, other)
"""
    said = user.run(code)
    assert said.startswith("11\n"), "no daemon runs"
    # One line for the image, which is mounted twice.
    assert " and 1 more" in said
    assert "mounts 2" in said
