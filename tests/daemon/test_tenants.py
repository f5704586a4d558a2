"""Many tenants on one daemon, in short."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.place import Place
from tests.daemon.tenants import held, kept, publish, soak
from tests.system.world import require


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require("root", "mounts as root")
    found = Place(tmp_path / "place")
    yield found
    assert found.close() == []


def test_tenants_come_and_go_and_leave_nothing(place: Place) -> None:
    manifests = publish(place, 8)
    with kept(place, manifests[0]):
        before = held(place).rss
        assert soak(place, manifests, 24, 160) > 100
        assert held(place).rss < before + (64 << 20), "memory grows by what is cached, and by no more"
