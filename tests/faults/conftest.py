"""A server, and a proxy before it."""

from collections.abc import Iterator

import pytest

from tests.faults import FaultProxy
from tests.faults.origin import Origin
from tests.faults.raw import Client


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """One server for all tests: it remembers nothing but what is PUT."""
    with Origin() as server:
        yield server


@pytest.fixture
def proxy(origin: Origin) -> Iterator[FaultProxy]:
    """A proxy of this test's own."""
    with FaultProxy(origin.address) as running:
        yield running


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[Client]:
    """A connection to the proxy."""
    with Client(proxy.port) as connection:
        yield connection
