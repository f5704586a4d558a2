"""How often a GET may be sent twice, and which of the two counts."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.hedge import BURST, SHARE, HedgeBudget, Race
from imagefs.errors import StoreError


def test_one_get_in_twenty_may_be_hedged() -> None:
    budget = HedgeBudget()
    assert budget.spend()
    assert not budget.spend()
    for _ in range(100):
        for _ in range(19):
            budget.earn()
            assert not budget.spend()
        budget.earn()
        assert budget.spend()


@given(st.lists(st.booleans(), max_size=400))
def test_hedges_stay_within_the_budget(steps: list[bool]) -> None:
    budget = HedgeBudget()
    earned = spent = 0
    for earn in steps:
        if earn:
            earned += 1
            budget.earn()
        else:
            spent += budget.spend()
        assert spent <= 1 + SHARE * (earned + 1)


def test_only_so_many_are_saved_up() -> None:
    budget = HedgeBudget()
    for _ in range(1000):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == BURST


@pytest.mark.trio
async def test_the_first_answer_wins() -> None:
    race = Race()
    race.start(1.0, hedge=False)
    race.start(2.0, hedge=True)
    race.win(b"hedge", hedge=True)
    race.win(b"first", hedge=False)
    assert race.result() == b"hedge"
    assert race.hedge_won
    assert race.hedge_began == 2.0


@pytest.mark.trio
async def test_an_error_counts_when_nobody_is_left() -> None:
    race = Race()
    race.start(1.0, hedge=False)
    race.start(2.0, hedge=True)
    race.lose(StoreError("first"))
    assert not race.over.is_set()
    race.lose(StoreError("second"))
    with trio.fail_after(1):
        await race.over.wait()
    with pytest.raises(StoreError, match="first"):
        race.result()
