"""Shared fixtures: worlds (a store, a cache and a runtime below ``tmp_path``) and ``require`` for what a machine may lack."""

import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.world import World
from tests.system.world import require as require_feature

# Started in the background by a shell, this process ignores SIGINT and so would every command that it starts: some are to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(name="require", scope="session")
def _require() -> Callable[..., None]:
    """``require(feature, reason)``: skip with the reason, or fail under ``IMAGEFS_REQUIRE=1``."""
    return require_feature


@pytest.fixture
def imagefs(tmp_path: Path) -> Iterator[World]:
    """A world of its own for one test."""
    world = World(tmp_path / "world")
    yield world
    assert world.close() == []


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[[str], World]]:
    """Makes worlds by name, for tests that need several."""
    worlds: list[World] = []

    def make(name: str) -> World:
        worlds.append(World(tmp_path / name))
        return worlds[-1]

    yield make
    assert [line for world in worlds for line in world.close()] == []


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One world for all tests that only convert, mount and look: its daemon stays up between them."""
    world = World(tmp_path_factory.mktemp("shared") / "world")
    empty = tmp_path_factory.mktemp("empty")
    world.convert(f"dir:{empty}", "keeper")
    world.mount("keeper", "keeper")
    yield world
    assert world.close() == []


@pytest.fixture
def user_world(tmp_path: Path) -> Iterator[World]:
    """A world of a user without any rights, whose every command runs as that user."""
    require_feature("root", "to become another user")
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode) if device.exists() else None
    if mode is not None:
        # What distributions give it; a bare machine may keep it for root.
        device.chmod(0o666)
    world = World(tmp_path / "user")
    world.become(65534)
    yield world
    ended = world.close()
    if mode is not None:
        device.chmod(mode)
    assert ended == []
