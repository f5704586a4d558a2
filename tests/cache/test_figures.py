"""What GETs took lately."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.figures import ENOUGH, KEPT, Figures

KIB = 1024
MIB = 1024 * KIB


def _known(size: int, times: list[float]) -> Figures:
    figures = Figures()
    for seconds in times:
        figures.took(size, seconds)
    return figures


def test_too_few_times_say_nothing() -> None:
    assert Figures().quantile(MIB, 0.95) is None
    assert _known(MIB, [1.0] * (ENOUGH - 1)).quantile(MIB, 0.95) is None
    assert _known(MIB, [1.0] * ENOUGH).quantile(MIB, 0.95) == 1.0


def test_a_quantile_is_a_time_that_was_seen() -> None:
    figures = _known(MIB, [float(number) for number in range(1, 21)])
    assert figures.quantile(MIB, 0.95) == 19.0
    assert figures.quantile(MIB, 0.5) == 10.0
    assert figures.quantile(MIB, 1.0) == 20.0


def test_old_times_go() -> None:
    assert _known(MIB, [9.0] * KEPT + [1.0] * KEPT).quantile(MIB, 1.0) == 1.0


def test_other_sizes_stand_in() -> None:
    figures = _known(256 * KIB, [1.0] * ENOUGH)
    assert figures.quantile(MIB, 0.5) == pytest.approx(4.0), "larger ones take longer"
    assert figures.quantile(KIB, 0.5) == 1.0, "smaller ones no longer"
    figures.forget()
    assert figures.quantile(MIB, 0.5) is None


def test_the_latency_is_what_the_quick_ones_of_the_small_gets_take() -> None:
    assert Figures().latency() is None
    assert _known(KIB, [0.02]).latency() is None, "one alone may be the one that opened the connection"
    figures = _known(KIB, [0.3, 0.02])
    assert figures.latency() == 0.02
    for _ in range(20):
        figures.took(MIB, 0.001)
    assert figures.latency() == 0.02, "large ones say how fast the link is"
    for seconds in (0.5, 0.03, 0.5, 0.5, 0.5, 0.5):
        figures.took(256 * KIB, seconds)
    assert figures.latency() == 0.03
    figures.forget()
    assert figures.latency() is None


def test_bytes_a_second_are_those_of_the_last_seconds() -> None:
    figures = Figures()
    assert figures.bytes_per_second(0.0) == 0
    for second in range(100):
        figures.arrived(MIB, float(second))
    assert figures.bytes_per_second(99.0) == pytest.approx(MIB, rel=0.11)
    assert figures.bytes_per_second(200.0) == 0


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.floats(0.001, 30)), max_size=200), st.integers(1, 64 * MIB))
def test_estimates_are_positive_and_rows_add_up(took: list[tuple[int, float]], size: int) -> None:
    figures = Figures()
    for item in took:
        figures.took(*item)
    estimate = figures.quantile(size, 0.95)
    assert estimate is None or estimate > 0
    rows = figures.as_rows()
    for row in rows:
        assert isinstance(row["gets"], int)
        assert isinstance(row["p50_ms"], float)
        assert isinstance(row["p95_ms"], float)
        assert row["p50_ms"] <= row["p95_ms"]
        assert 0 < row["gets"] <= KEPT
