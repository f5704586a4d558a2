"""``./dev demo`` leaves nothing mounted, no process and no folder behind, whatever ends it.

It is given a small image with one program, ``sleep``, in place of its own. Its mounts are in a namespace of its own: that they are gone is
looked for in those of all processes.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import pytest

from tests.checkout import ROOT, setup
from tests.system.world import missing, require, wait_until

DEADLINE: Final = 60.0


@pytest.fixture(scope="module", autouse=True)
def _needs(tmp_path_factory: pytest.TempPathFactory) -> None:
    require("fuse")
    require("root", "to mount, also in the namespace of a user")
    if setup(tmp_path_factory.mktemp("bin")) != (0, ""):
        missing("what ./dev setup installs, which ./dev demo would do first")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with ``sleep`` and its libraries."""
    folder = tmp_path_factory.mktemp("image")
    program = shutil.which("sleep")
    assert program is not None
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=20, check=True).stdout
    for path in (program, *(word for word in listed.split() if word.startswith("/"))):
        (folder / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(path).resolve(), folder / path[1:])
    shutil.copy(Path(program).resolve(), folder / "sleep")
    return f"dir:{folder}"


class Demo:
    """One demonstration, with a development cache of its own; its leader has a process group of its own, as in a terminal."""

    def __init__(self, cache: Path, *arguments: str) -> None:
        """Start it."""
        self.cache = cache
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [ROOT / "dev", "demo", *arguments],
            env=os.environ | {"IMAGEFS_DEV_CACHE": str(cache)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    @property
    def errors(self) -> IO[str]:
        """What it says."""
        assert self.process.stderr is not None
        return self.process.stderr

    def reach(self, stage: str) -> None:
        """Return when it says that ``stage`` begins."""
        for line in self.errors:
            self.said.append(line)
            if line.startswith(stage):
                return
        pytest.fail(f"it ended before {stage}: {''.join(self.said)}")

    def ended(self) -> int:
        """Return how it ended; ``said`` is then all that it said."""
        self.said += self.process.communicate(timeout=DEADLINE)[1].splitlines(keepends=True)
        return self.process.returncode

    def processes(self) -> list[str]:
        """Return the command lines of those that were started by it, or see a mount of it: those of its namespace."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and int(folder.name) != os.getpid():
                    mark = f"IMAGEFS_DEV_CACHE={self.cache}".encode()
                    if mark in (folder / "environ").read_bytes().split(b"\0") or os.fsencode(self.cache) in (
                        (folder / "mountinfo").read_bytes() + (folder / "cmdline").read_bytes()
                    ):
                        found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return found

    def folders(self) -> list[Path]:
        """Return the folders with its store and its mountpoint."""
        return list(self.cache.glob("demo-*"))

    def close(self) -> None:
        """End it, if a test left it running."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=DEADLINE)


@contextlib.contextmanager
def demonstration(cache: Path, *arguments: str) -> Iterator[Demo]:
    demo = Demo(cache, *arguments)
    try:
        yield demo
    finally:
        demo.close()


@pytest.mark.parametrize("stage", ["convert", "mount", "run"])
def test_interrupted_in_the_terminal(stage: str, source: str, tmp_path: Path) -> None:
    with demonstration(tmp_path, source, "/sleep", "1000") as demo:
        demo.reach(stage)
        os.killpg(demo.process.pid, signal.SIGINT)  # that is what a terminal does
        assert demo.ended() == 128 + signal.SIGINT, demo.said
        assert (demo.processes(), demo.folders()) == ([], [])


@pytest.mark.parametrize("store", ["--s3", "folder"])
def test_terminated(store: str, source: str, tmp_path: Path) -> None:
    options = [store] if store.startswith("-") else []
    with demonstration(tmp_path, *options, source, "/sleep", "1000") as demo:
        demo.reach("run")
        demo.process.terminate()
        assert demo.ended() == 128 + signal.SIGTERM, demo.said
        assert (demo.processes(), demo.folders()) == ([], [])


def test_killed(source: str, tmp_path: Path) -> None:
    """What cannot clean up leaves its folder to the next, and nothing else."""
    with demonstration(tmp_path, source, "/sleep", "1000") as demo:
        demo.reach("run")
        assert demo.processes() != []
        demo.process.kill()
        demo.process.wait(DEADLINE)
        wait_until(lambda: demo.processes() == [], "the processes to end")
        left = demo.folders()
        assert len(left) == 1
    with demonstration(tmp_path, source, "/sleep", "0") as demo:
        assert demo.ended() == 0, demo.said
        assert (demo.processes(), demo.folders()) == ([], [])
        assert not left[0].exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["/sleep", "nonsense"], "demo: the program ended with 1:\n"),
        (["/nowhere"], "demo: the program ended with 127:\n"),
    ],
    ids=["fails", "missing"],
)
def test_a_program_that_fails(arguments: list[str], says: str, source: str, tmp_path: Path) -> None:
    with demonstration(tmp_path, source, *arguments) as demo:
        assert demo.ended() == 1
        assert says in demo.said
        assert (demo.processes(), demo.folders()) == ([], [])


def test_no_image(tmp_path: Path) -> None:
    with demonstration(tmp_path, f"oci-archive:{tmp_path}/nowhere.tar") as demo:
        assert demo.ended() == 1
        assert "nowhere.tar" in "".join(demo.said)
        assert (demo.processes(), demo.folders()) == ([], [])
