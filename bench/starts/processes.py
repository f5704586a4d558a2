"""Programs that are started and ended: file systems that stay, commands that must end in time, and the workload's program in its root.

Guarantees: whatever is started here dies with this process; what does not end in time is killed by its own process id, never by a name;
a mount that is left is detached, so that nobody waits for it.
"""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

TIED = ("setpriv", "--pdeathsig", "KILL")
_POLL = 0.002
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Failed(RuntimeError):  # noqa: N818 - it reads as a sentence, like trio.Cancelled
    """A program failed, or did not end in time."""


class Late(Failed):
    """A program did not end in time."""


def command(*argv: str | Path, seconds: float, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and give what it printed on its standard output.

    Raises:
        Failed: it failed.
        Late: it did not end within ``seconds``.

    """
    words = [str(word) for word in argv]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen([*TIED, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
        try:
            status = process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            # In the middle of a read of a file system that hangs it ends when that is taken away, which the caller does next.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
            raise Late(f"{words[0]}: no end after {seconds:.0f} s") from None
        except BaseException:
            process.kill()
            raise
        out.seek(0)
        err.seek(0)
        printed, said = (file.read().decode(errors="replace") for file in (out, err))
    if status:
        raise Failed(f"{words[0]} failed with {status}: {printed[-200:]}{said[-600:].strip()}")
    return printed


def program(root: Path, argv: Sequence[str], seconds: float) -> str:
    """Run a program in a chroot in ``root`` with /dev, /proc and a /tmp of its own, and give what it printed; as :func:`command`."""
    script = (
        'mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/tmp" && root=$0 && '
        f'exec env -i PATH={_PATH} HOME=/tmp LC_ALL=C.UTF-8 HF_HUB_OFFLINE=1 chroot "$root" "$@"'
    )
    namespaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--")
    return command(*namespaces, "sh", "-c", script, root, *argv, seconds=seconds)


def is_mounted(point: Path) -> bool:
    """Whether something is mounted at ``point``; asks the kernel's table, not the file system, which may hang."""
    place = os.fsencode(point).replace(b" ", b"\\040")
    return any(line.split()[4] == place for line in Path("/proc/self/mountinfo").read_bytes().splitlines())


def unmount(point: Path) -> None:
    """Unmount what is at ``point``; what is in use is detached."""
    for options in ((), ("-l",)):
        if not is_mounted(point):
            return
        with contextlib.suppress(Failed):
            command("umount", *options, point, seconds=20)


@contextlib.contextmanager
def running(argv: Sequence[str | Path], ready: Callable[[], bool], seconds: float, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run a program that stays, from when it is ``ready`` until the end of the block; then it has to end by itself, or is ended.

    Raises:
        Failed: it ended, or was not ready within ``seconds``.

    """
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([*TIED, *map(str, argv)], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            deadline = time.monotonic() + seconds
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    out.seek(0)
                    raise Failed(f"{argv[0]} did not start: {out.read().decode(errors='replace')[-600:].strip()}")
                time.sleep(_POLL)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@contextlib.contextmanager
def serving(argv: Sequence[str | Path], point: Path, seconds: float, env: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Run a file system in the foreground and have it mounted at ``point`` for the length of the block."""
    point.mkdir(parents=True, exist_ok=True)
    try:
        with running(argv, lambda: is_mounted(point), seconds, env):
            try:
                yield point
            finally:
                unmount(point)
    finally:
        unmount(point)
        with contextlib.suppress(OSError):
            point.rmdir()


@contextlib.contextmanager
def mounted(point: Path, *options: str | Path, seconds: float) -> Iterator[Path]:
    """Have ``mount OPTIONS point`` for the length of the block."""
    point.mkdir(parents=True, exist_ok=True)
    command("mount", *options, point, seconds=seconds)
    try:
        yield point
    finally:
        unmount(point)
        with contextlib.suppress(OSError):
            point.rmdir()
