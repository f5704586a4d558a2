"""An image to run services in, hosts that share a store, and the services: what the tests of the runner have in common.

The image is this machine's Python with what it is linked to, made once a session; each test has a store of its own, whose files are links
to those of the first. A *host* is a cache and a runtime directory. When a test is over nothing may be left on any of its hosts.
"""

import contextlib
import os
import re
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from imagefs.config import Config
from imagefs.convert.convert import convert
from imagefs.daemon import client
from imagefs.digest import digest_of
from imagefs.mount.bind import unmount
from imagefs.store.base import ObjectStore
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from snapshotstore.runner.entry import Entry, find
from snapshotstore.runner.runner import COLD, Answer, Runner
from tests.system.world import missing, mounts_below, tool

IMAGE: Final = "python:1"
ENGINES: Final = "engines.json"
"""What a host has found out about its engines: of the first host of a session, for all others."""

_PYTHON: Final = Path("/usr/bin/python3")
_LEFT_OUT: Final = ("test", "idlelib", "tkinter", "ensurepip", "lib2to3", "distutils", "pydoc_data", "turtledemo", "unittest", "config-*")
_LIBRARY: Final = re.compile(r"(/\S+) \(0x")


def make_image(folder: Path) -> Path:
    """Make the tree of the image: Python, its standard library, and ``cat``, with all that they load."""
    if not _PYTHON.exists():
        missing(f"no {_PYTHON} here, which the services run on")
    python = _PYTHON.resolve()
    library = Path("/usr/lib") / python.name
    shutil.copytree(library, folder / library.relative_to("/"), ignore=shutil.ignore_patterns(*_LEFT_OUT))
    programs = [python, Path("/bin/cat").resolve(), *library.glob("lib-dynload/*.so")]
    for program in programs[:2]:
        _copy(program, folder)
    for found in sorted(set(_LIBRARY.findall(tool("ldd", *programs).decode()))):
        _copy(Path(found), folder)
    for name in ("proc", "sys", "dev", "run", "etc", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    (folder / "usr/bin/python3").symlink_to(python.name)
    for name in ("bin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (folder / name).symlink_to(Path("/", name).readlink())
    return folder


def _copy(path: Path, folder: Path) -> None:
    """Copy a file to where it is when directories are looked up as here."""
    there = folder / (path.parent.resolve() / path.name).relative_to("/")
    there.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, there)


def make_store(folder: Path) -> Path:
    """Make a store with the image; return ``folder``, in which it is."""
    tree = make_image(folder / "tree")
    with contextlib.closing(open_store(f"file://{folder}/store", create=True)) as store:
        convert(f"dir:{tree}", Ref.parse(IMAGE), store, jobs=2, level=1)
    shutil.rmtree(tree)
    return folder


@dataclass(frozen=True)
class Host:
    """A host: where it has its cache and its runtime directory, and which store it uses."""

    config: Config

    def runner(self, engine: str = "auto", **options: Any) -> Runner:
        """Make a runner there; closed with its place, if not before."""
        return Runner(self.config, engine=engine, **options)

    @property
    def worker(self) -> int:
        """The process that serves this host's mounts."""
        return int(client.status(self.config)["worker_pid"])


@dataclass
class Place:
    """A store with the image, hosts, and the sources of services, below ``root``."""

    root: Path
    template: Path
    engine: str
    resident: bool = True
    hosts: dict[str, Host] = field(default_factory=dict)
    runners: list[Runner] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the store."""
        self.root.mkdir()
        shutil.copytree(self.template / "store", self.store_folder, copy_function=os.link)
        self.store: ObjectStore = open_store(self.url)

    @property
    def store_folder(self) -> Path:
        """Where the store is."""
        return self.root / "store"

    @property
    def url(self) -> str:
        """What the store is called."""
        return f"file://{self.store_folder}"

    def host(self, name: str = "host", **changes: Any) -> Host:
        """Return the host of that name; each has a cache and a runtime directory of its own."""
        if name not in self.hosts:
            home = self.root / name
            (home / "run").mkdir(parents=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(self.template / ENGINES, home / "run" / ENGINES)
            config = Config(store=self.url, cache=home / "cache", runtime=home / "run", complete_bytes_per_second=0)
            self.hosts[name] = Host(replace(config, **changes))
            if self.resident:
                # Started once, it need not be for each call.
                client.ensure_daemon(self.hosts[name].config, auto_stop=False)
        return self.hosts[name]

    def runner(self, host: str = "host", **options: Any) -> Runner:
        """Make a runner on a host, with the engine of the test."""
        self.runners.append(self.host(host).runner(**({"engine": self.engine} | options)))
        return self.runners[-1]

    def source(self, text: str, name: str = "source", **files: str) -> Path:
        """Write the module ``service``, and others; return their directory."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        for module, content in {"service": text, **files}.items():
            (folder / f"{module}.py").write_text(content)
        return folder

    def entry(self, text: str, name: str = "source", target: str = "service:Service") -> Entry:
        """Write the module ``service``; return the service in it."""
        return find(target, self.source(text, name))

    def call(self, service: Entry, method: str, *args: Any, host: str = "host", **options: Any) -> Answer:
        """Call a method with a runner of its own, and see that nothing went wrong at its end."""
        runner = self.runner(host)
        try:
            return runner.call(service, method, list(args), {}, **options)
        finally:
            notes = runner.close()
            self.runners.remove(runner)
            assert notes == []

    def frozen(self, service: Entry, method: str, *args: Any) -> None:
        """Have a snapshot of the service in the store: made by a call, which is done once a session."""
        source = b"".join(path.read_bytes() for path in sorted(service.folder.rglob("*")) if path.is_file())
        kept = self.template / f"{self.engine}-{digest_of(source).hex()}"
        if not kept.exists():
            assert self.call(service, method, *args, host="maker").started == COLD
            shutil.copytree(self.store_folder, kept, copy_function=os.link, ignore=shutil.ignore_patterns("tmp"))
        for path in kept.rglob("*"):
            there = self.store_folder / path.relative_to(kept)
            if not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                there.hardlink_to(path) if path.is_file() else there.mkdir(exist_ok=True)
        assert self.refs()

    def log(self, answer: Answer) -> str:
        """Return what the program of an answer has printed."""
        path = Path(answer.log)
        return path.read_text() if path.exists() else ""

    def refs(self) -> list[str]:
        """Return the names of the snapshots in the store."""
        return sorted(info.key for info in self.store.list("refs/snapshots/"))

    def left(self) -> list[str]:
        """Return what runners have left on any host: processes, mounts, directories, checkpoints, daemons."""
        found = [f"mount {point!r}" for point in mounts_below(self.root)]
        mark = os.fsencode(self.root)
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and int(folder.name) != os.getpid():
                    command = (folder / "cmdline").read_bytes()
                    if mark in command or mark in (folder / "environ").read_bytes():
                        found.append(f"process {folder.name}: {command!r}"[:300])
        return found + self.left_by_runners()

    def left_by_runners(self) -> list[str]:
        """Return the directories and checkpoints that are left on any host."""
        found = []
        for host in self.hosts.values():
            for folder in (host.config.runtime / "runners", host.config.cache.with_name(host.config.cache.name + "-checkpoints")):
                found += [str(path) for path in folder.iterdir()] if folder.is_dir() else []
        return found

    def close(self) -> list[str]:
        """End everything; return what was left."""
        for runner in self.runners:
            runner.close()
        for host in self.hosts.values():
            if self.resident and client.running(host.config):
                client.stop(host.config)
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(host.config.runtime / ENGINES, self.template / ENGINES)
        # A daemon ends by itself after its last mount, which may just have gone.
        until = time.monotonic() + 20
        while (left := self.left()) and time.monotonic() < until:
            time.sleep(0.02)
        for point in mounts_below(self.root):
            unmount(Path(os.fsdecode(point)), lazy=True)
        self.store.close()
        return left
