"""Places for the daemon's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.place import Place
from tests.system.world import require as require_feature


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place of one test's own. Nothing may be mounted there when its daemon has ended."""
    require_feature("root", "mounts through /dev/fuse as root")
    made = Place(tmp_path / "place")
    yield made
    assert made.close() == []
