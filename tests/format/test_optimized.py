"""What a manifest says of how an optimized image came to be is read back; whatever else stands there is nobody's word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.format import optimized
from imagefs.format.optimized import EXPECTED, FROM, PROFILE, RULES, Optimized, Start

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
COUNTS = st.integers(0, 2**63 - 1)
STARTS = st.builds(Start, COUNTS, COUNTS)
MADE = st.builds(Optimized, HEX, HEX, st.integers(0, 999), STARTS, STARTS)


@given(MADE, st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
def test_what_was_written_is_read_and_the_origins_own_annotations_stay(made: Optimized, own: dict[str, str]) -> None:
    annotations = optimized.annotated(own, made)
    assert optimized.read(annotations) == made
    assert own.items() <= annotations.items()
    assert optimized.annotated(annotations, made) == annotations


@given(MADE, MADE)
def test_of_two_optimizations_the_last_one_counts(first: Optimized, second: Optimized) -> None:
    assert optimized.annotated(optimized.annotated({}, first), second) == optimized.annotated({}, second)


WHOLE = optimized.annotated({}, Optimized("a" * 64, "b" * 64, 1, Start(9, 100), Start(2, 90)))


@pytest.mark.parametrize(
    "name, text",
    [
        *[(name, None) for name in WHOLE],
        (FROM, "A" * 64),
        (FROM, "a" * 63),
        (PROFILE, ""),
        (RULES, "-1"),
        (RULES, "x"),
        (RULES, "١"),  # noqa: RUF001 # a digit, though not one of ours
        (RULES, "1" * 5000),
        (EXPECTED, ""),
        (EXPECTED, "[" * 100_000),
        (EXPECTED, '{"gets_before":1,"gets_after":1,"bytes_before":1}'),
        (EXPECTED, '{"gets_before":1,"gets_after":1,"bytes_before":1,"bytes_after":"x"}'),
        (EXPECTED, '{"gets_before":1,"gets_after":1,"bytes_before":1,"bytes_after":1,"more":1}'),
        (EXPECTED, "\ud800"),
    ],
)
def test_anything_else_is_an_image_that_is_not_optimized(name: str, text: str | None) -> None:
    assert optimized.read(WHOLE) is not None
    annotations = WHOLE | ({} if text is None else {name: text})
    if text is None:
        del annotations[name]
    assert optimized.read(annotations) is None
