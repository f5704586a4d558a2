"""Places for the tests of kernel mode."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.kernel_place import Place, kernel_or_skip


@pytest.fixture
def make_place(tmp_path: Path) -> Iterator[Callable[[str], Place]]:
    """Makes places by name. Nothing may be mounted in them when they have been unmounted."""
    kernel_or_skip()
    places: list[Place] = []

    def make(name: str) -> Place:
        places.append(Place(tmp_path / name))
        return places[-1]

    yield make
    for place in places:
        place.close()


@pytest.fixture
def place(make_place: Callable[[str], Place]) -> Place:
    """A place of one test's own."""
    return make_place("place")
