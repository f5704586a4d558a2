"""What the tests of the host tiers share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from imagefs.store.opening import open_store
from tests.fuse.images import Maker


@pytest.fixture
def threads_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps whenever all tasks wait, also for a thread; so what is for a thread is done at once."""

    async def run_sync(function: Callable[..., object], *args: object, **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Maker]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    yield Maker(store)
    store.close()
