"""An image to disturb the reading of, and worlds to do it in."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.readers import write_tree
from tests.system.world import World, require


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with the image ``test`` of what ``readers`` read."""
    require("root", "mounts through /dev/fuse as root")
    made = World(tmp_path_factory.mktemp("reading") / "w")
    write_tree(made.root / "source")
    made.convert(f"dir:{made.root}/source")
    yield made.store
    assert made.close() == []


@pytest.fixture
def reading_store(converted: Path) -> str:
    """Return its URL. It knows no start: what the tests before have recorded is not fetched ahead in this one."""
    shutil.rmtree(converted / "profiles", ignore_errors=True)
    return f"file://{converted}"


@pytest.fixture
def reading_world(reading_store: str, tmp_path: Path) -> Iterator[World]:
    """A world with that store, and with so little room that RAM, SSD and store all have something to do."""
    made = World(tmp_path / "w")
    made.environment |= {
        "IMAGEFS_STORE": reading_store,
        "IMAGEFS_RAM_BYTES": "8MiB",
        "IMAGEFS_CACHE_BYTES": "64MiB",
        "IMAGEFS_LOG_LEVEL": "info",
    }
    yield made
    assert made.close() == []
