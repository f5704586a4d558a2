"""The place where engines run programs, that where runners run services, and a cgroup for them."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotstore.checkpoint.base import Bind, Checkpointer
from tests.snapshots import services
from tests.snapshots.conformance import unified_cgroup
from tests.snapshots.engines import engine as find
from tests.snapshots.place import Place, make_root
from tests.system.world import require


@pytest.fixture(scope="session")
def sandbox_root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Bind, ...]]:
    """A root file system, and what is bound into it."""
    return make_root(tmp_path_factory.mktemp("sandbox") / "root")


@pytest.fixture
def user() -> int:
    """Whose the programs are. An engine that cannot freeze this user's everywhere gives another one."""
    return 65534


@pytest.fixture
def place(tmp_path: Path, sandbox_root: tuple[Path, tuple[Bind, ...]], engine: Checkpointer, user: int) -> Iterator[Place]:
    """Where sandboxes are made. All are removed when the test is over, and nothing may be left of them."""
    made = Place(tmp_path / "place", *sandbox_root, engine, user)
    yield made
    assert made.close() == []


@pytest.fixture(scope="session")
def service_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store that has the image of services."""
    return services.make_store(tmp_path_factory.mktemp("services"))


@pytest.fixture(params=["runsc", "criu"])
def engine_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each engine, which is found first on PATH."""
    require("root", "runs the engines")
    name: str = request.param
    program = find(name, "--version" if name == "runsc" else "check")
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return name


@pytest.fixture
def service_place(tmp_path: Path, service_store: Path, engine_name: str) -> Iterator[services.Place]:
    """Where services are run. Nothing may be left of them when the test is over."""
    made = services.Place(tmp_path / "services", service_store, engine_name)
    yield made
    assert made.close() == []


@pytest.fixture
def cgroup() -> Iterator[Callable[[], Path]]:
    """Makes cgroups, which are taken away when the test is over."""
    made: list[Path] = []

    def make() -> Path:
        folder = unified_cgroup() / f"imagefs-test-{secrets.token_hex(4)}"
        folder.mkdir()
        made.append(folder)
        return folder

    yield make
    for folder in made:
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
