"""The place where engines run programs, and a cgroup for them."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotstore.checkpoint.base import Bind, Checkpointer
from tests.snapshots.conformance import unified_cgroup
from tests.snapshots.place import Place, make_root


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
