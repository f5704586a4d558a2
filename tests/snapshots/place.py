"""Where the tests of engines run their programs: a root file system, sandboxes, and networks for them.

The root is a directory of ours with the host's ``/usr`` bound into it, so that it needs nothing but a Python at ``/usr/bin/python3``. Every
sandbox of a place is removed when the test is over, and then nothing of it may be left: no process, no mount.
"""

import contextlib
import dataclasses
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from imagefs.errors import ImageFSError
from snapshotstore.checkpoint.base import Bind, Checkpointer, Sandbox
from tests.system.world import detach, missing, mounts_below, require, tool, wait_until

DEADLINE: Final = 60.0
"""Seconds that any call may take before the test fails."""

PYTHON: Final = "/usr/bin/python3"
TALK: Final = "/talk"
"""A writable directory that is another one in each sandbox."""

_LINKS: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")


def make_root(folder: Path) -> tuple[Path, tuple[Bind, ...]]:
    """Make a root file system at ``folder``; return it, and what is bound into it."""
    if not Path(PYTHON).exists():
        missing(f"no {PYTHON} here, which the programs in the sandboxes run on")
    binds = [Bind(source=Path("/usr"), target="/usr")]
    for name in ("usr", "proc", "sys", "dev", "tmp", "run", "etc", "talk"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    with contextlib.suppress(FileNotFoundError):
        shutil.copy("/etc/ld.so.cache", folder / "etc" / "ld.so.cache")
    for name in _LINKS:
        ours = Path("/", name)
        if ours.is_symlink():
            (folder / name).symlink_to(ours.readlink())
        elif ours.is_dir():
            (folder / name).mkdir()
            binds.append(Bind(source=ours, target=f"/{name}"))
    return folder, tuple(binds)


class Place:
    """Makes sandboxes below ``folder``, with ``engine`` to run them."""

    def __init__(self, folder: Path, root: Path, binds: tuple[Bind, ...], engine: Checkpointer, user: int = 65534) -> None:
        """Make ``folder``; nothing runs yet. ``user`` is whose the programs are, if a test does not say."""
        folder.mkdir()
        self.folder = folder
        self.engine = engine
        self.user = user
        self._root = root
        self._binds = binds
        self._made: list[Sandbox] = []
        self._networks: list[Network] = []

    def sandbox(self, name: str, code: str, **changes: Any) -> Sandbox:
        """Make a sandbox for the Python program ``code``. Its directory ``talk`` is there, empty, and writable for the program."""
        home = self.folder / name
        (home / "state").mkdir(parents=True, mode=0o700)
        given: dict[str, Any] = {
            "argv": (PYTHON, "-I", "-S", "-u", "-c", code),
            "environment": {"PYTHONHASHSEED": "0", "MARK": str(self.folder)},
            "root": self._root,
            "uid": self.user,
            "gid": self.user,
        }
        made = Sandbox(
            name=f"t-{name}-{secrets.token_hex(4)}",
            state=home / "state",
            output=home / "output",
            binds=(*self._binds, self.talk(name)),
            **(given | changes),
        )
        self._made.append(made)
        return made

    def talk(self, name: str) -> Bind:
        """Make the directory ``talk`` of a sandbox."""
        folder = self.folder / name / "talk"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        return Bind(source=folder, target=TALK, writable=True)

    def start(self, name: str, code: str, *, until: str = "", **changes: Any) -> Sandbox:
        """Start a program, and wait until it has printed a line ``until``."""
        made = self.sandbox(name, code, **changes)
        self.engine.start(made, deadline=DEADLINE)
        if until:
            self.expect(made, until)
        return made

    def checkpoint(self, sandbox: Sandbox, name: str = "images") -> Path:
        """Checkpoint a program; return where."""
        images = self.folder / name
        images.mkdir(mode=0o700)
        self.engine.checkpoint(sandbox, images, deadline=DEADLINE)
        return images

    def clone_of(self, sandbox: Sandbox, name: str, images: Path, **changes: Any) -> Sandbox:
        """Make a sandbox for a restore of ``sandbox`` from ``images``, with an output and a ``talk`` of its own."""
        home = self.folder / name
        (home / "state").mkdir(parents=True, mode=0o700)
        layer = (images / "layer",) if (images / "layer").exists() else ()
        given: dict[str, Any] = {
            "name": f"t-{name}-{secrets.token_hex(4)}",
            "state": home / "state",
            "output": home / "output",
            "lower": (*layer, *sandbox.lower),
            "binds": (*self._binds, self.talk(name)),
        }
        made = dataclasses.replace(sandbox, **(given | changes))
        self._made.append(made)
        return made

    def restore(self, sandbox: Sandbox, name: str, images: Path, **changes: Any) -> Sandbox:
        """Restore a clone of ``sandbox``."""
        made = self.clone_of(sandbox, name, images, **changes)
        self.engine.restore(made, images, deadline=DEADLINE)
        return made

    def lines(self, sandbox: Sandbox) -> list[str]:
        """Return the whole lines that a program has printed."""
        if not sandbox.output.exists():
            return []
        text = sandbox.output.read_text(errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()

    def expect(self, sandbox: Sandbox, line: str) -> None:
        """Wait until a program has printed a line."""
        wait_until(lambda: line in self.lines(sandbox) or not self.engine.is_alive(sandbox), f"{line!r} in {sandbox.output}")
        if line not in self.lines(sandbox):
            pytest.fail(f"{sandbox.name} ended without {line!r}:\n" + "\n".join(self.lines(sandbox)))

    def goes_on(self, sandbox: Sandbox) -> None:
        """See that a program prints more than it has so far."""
        before = len(self.lines(sandbox))
        wait_until(lambda: len(self.lines(sandbox)) > before or not self.engine.is_alive(sandbox), f"more in {sandbox.output}")
        assert self.engine.is_alive(sandbox)

    def end(self, sandbox: Sandbox) -> int:
        """Wait until a program has ended by itself; return its exit status."""
        return self.engine.wait(sandbox, deadline=DEADLINE)

    def network(self) -> "Network":
        """Make a network namespace with a peer."""
        self._networks.append(Network(self.folder / f"network{len(self._networks)}", len(self._networks)))
        return self._networks[-1]

    def left(self) -> list[str]:
        """Return the processes and the mounts that are left below the place's directory."""
        processes = [f"process {process}" for process in sorted(self._processes())]
        return processes + [f"mount {point!r}" for point in mounts_below(self.folder)]

    def close(self) -> list[str]:
        """Remove everything; return what could not be removed."""
        failed = []
        for made in self._made:
            try:
                self.engine.remove(made)
            except (ImageFSError, OSError) as error:
                failed.append(f"{made.name}: {error}")
        for network in self._networks:
            network.close()
        return failed + self.left()

    def _processes(self) -> Iterator[str]:
        """Give the processes that carry the place's directory in their arguments or their environment. Zombies carry nothing."""
        mark = os.fsencode(self.folder)
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if not folder.name.isdigit() or int(folder.name) == os.getpid():
                    continue
                arguments = (folder / "cmdline").read_bytes()
                if mark in arguments or mark in (folder / "environ").read_bytes():
                    yield f"{folder.name} {arguments.replace(bytes(1), b' ').decode(errors='replace')[:200]}"


class Network:
    """A network namespace at ``path`` for a program, whose address in it is ``address``, and one with its peer, in which tests connect."""

    def __init__(self, folder: Path, number: int) -> None:
        """Make both, with a pair of virtual links between them. Skips where the machine has none."""
        require("root", "to make network namespaces")
        for program in ("ip", "unshare", "nsenter"):
            require(program)
        folder.mkdir()
        self.path, self._peer = folder / "inside", folder / "peer"
        self.address, self.peer_address = f"10.77.{number}.2", f"10.77.{number}.1"
        for file in (self.path, self._peer):
            file.touch()
            tool("unshare", f"--net={file}", "true")
            self._inside(file, "ip", "link", "set", "lo", "up")
        made = subprocess.run(
            ["nsenter", f"--net={self._peer}", "ip", "link", "add", "peer", "type", "veth", "peer", "name", "eth0"],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            self.close()
            missing(f"no virtual links here: {made.stderr.strip()}")
        # A descriptor of the other namespace, because ip(8) takes names below /run/netns only, or processes.
        with self.path.open("rb") as inside:
            tool("nsenter", f"--net={self._peer}", "ip", "link", "set", "eth0", "netns", f"/proc/{os.getpid()}/fd/{inside.fileno()}")
        self._configure(self._peer, "peer", self.peer_address)
        self._configure(self.path, "eth0", self.address)

    def _configure(self, file: Path, link: str, address: str) -> None:
        self._inside(file, "ip", "address", "add", f"{address}/24", "dev", link)
        self._inside(file, "ip", "link", "set", link, "up")

    def _inside(self, file: Path, *command: str) -> None:
        tool("nsenter", f"--net={file}", *command)

    @contextlib.contextmanager
    def peer(self, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a Python program in the peer's namespace; end it when that is left."""
        command = ["nsenter", f"--net={self._peer}", sys.executable, "-I", "-u", "-c", code, *arguments]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def ask(self, port: int) -> str:
        """Connect to the program from the peer; return what it answers."""
        code = (
            "import socket, sys\n"
            "with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as s: print(s.makefile().read(), end='')"
        )
        with self.peer(code, self.address, str(port)) as asking:
            answer, _ = asking.communicate(timeout=DEADLINE)
        assert asking.returncode == 0
        return answer

    def close(self) -> None:
        """Let go of both."""
        for file in (self.path, self._peer):
            detach(file)
