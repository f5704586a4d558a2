"""RAM lets go of what was brought for nobody in particular when SSD has it, and of nothing else."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from imagefs.cache.landing import landed

PATIENCE = 10.0


class Slab:
    """One that came, that SSD has, and that nobody has read."""

    unread, in_flight, unsaved, due = 100, 0, 0, 0


class Came:
    """What came, and a RAM tier that has it; by a clock that jumps."""

    def __init__(self, *slabs: Slab) -> None:
        self.wanted: Any = [((SimpleNamespace(slab=slab), 0), None) for slab in (*slabs, None)]
        self.dropped: list[Slab] = []
        self.seconds = 0.0

    def drop(self, slab: Slab) -> None:
        self.dropped.append(slab)

    def land(self, saves: Slab | None = None, at: float = 0.0) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                begun = trio.current_time()
                nursery.start_soon(save)
                ram: Any = self
                await landed(self.wanted, ram, look=0.25, patience=PATIENCE)
                self.seconds = trio.current_time() - begun

        async def save() -> None:
            await trio.sleep(at)
            if saves is not None:
                saves.unsaved = 0

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_nobody_has_come_for_goes() -> None:
    both = Slab(), Slab()
    came = Came(*both)
    came.land()
    assert set(came.dropped) == set(both)
    assert came.seconds == 0


@pytest.mark.parametrize("why", ["unread", "in_flight", "due"])
def test_what_somebody_has_read_or_will_stays(why: str) -> None:
    kept, other = Slab(), Slab()
    setattr(kept, why, 0 if why == "unread" else 7)
    came = Came(kept, other)
    came.land()
    assert came.dropped == [other]


def test_it_is_waited_for_ssd() -> None:
    late = Slab()
    late.unsaved = 100
    came = Came(late)
    came.land(late, at=3.0)
    assert came.dropped == [late]
    assert 3 <= came.seconds <= 3.25


def test_but_not_for_ever() -> None:
    never, other = Slab(), Slab()
    never.unsaved = 100
    came = Came(never, other)
    came.land()
    assert came.dropped == [other]
    assert came.seconds == PATIENCE
