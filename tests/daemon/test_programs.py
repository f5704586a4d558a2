"""Which of the programs that profiles are of are running."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.daemon.programs import Programs, Running, choose, closest
from imagefs.format.profile import Key

TRAIN, SERVE = Key("python train.py"), Key("python serve.py")
LABELLED, OTHER_GPU = Key("python train.py", "nightly"), Key("python train.py", "", "H100")
KEYS = [TRAIN, SERVE, LABELLED, OTHER_GPU]
IMAGE, OTHER = "1" * 64, "2" * 64


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (TRAIN, {TRAIN}),
        (OTHER_GPU, {OTHER_GPU}),
        (Key("python train.py", "", "L4"), {TRAIN, OTHER_GPU}),
        (LABELLED, {LABELLED}),
        (Key("python train.py", "nightly", "L4"), {LABELLED}),
        (Key("python train.py", "weekly"), set()),
        (Key("python train.py --fast"), set()),
        (Key(), set()),
    ],
)
def test_the_starts_of_a_program_are_those_most_like_it(wanted: Key, found: set[Key]) -> None:
    assert closest(KEYS, wanted) == found


def test_starts_that_somebody_labelled_are_of_that_program_where_there_are_no_others() -> None:
    assert closest([LABELLED, SERVE], TRAIN) == {LABELLED}


def settled(*keys: Key) -> list[Running]:
    return [Running(key, settled=True) for key in keys]


def test_of_several_programs_the_starts_of_all_are_chosen() -> None:
    assert choose(KEYS, settled(TRAIN, SERVE)) == (frozenset({TRAIN, SERVE}), False)
    assert choose(KEYS, settled(TRAIN, Key("sh"))) == (frozenset({TRAIN}), False)


def test_while_one_of_them_is_not_known_nothing_is_chosen() -> None:
    assert choose(KEYS, [*settled(TRAIN), Running(None, settled=False)]) == (frozenset(), False)
    assert choose(KEYS, []) == (frozenset(), False)


def test_what_may_still_become_another_program_is_no_stranger_yet() -> None:
    assert choose(KEYS, [Running(Key("runc init"), settled=False)]) == (frozenset(), False)
    assert choose(KEYS, [Running(TRAIN, settled=False)]) == (frozenset({TRAIN}), False)
    assert choose(KEYS, settled(Key("sh -c find"))) == (frozenset(), True)


def test_who_gave_a_label_is_no_stranger_to_its_starts_and_where_nothing_is_known_nobody_is() -> None:
    assert choose(KEYS, settled(Key("sh", "nightly"))) == (frozenset(), False)
    assert choose([], settled(TRAIN)) == (frozenset(), False)


def test_what_is_found_is_news_once_and_what_is_not_expected_is_nothing() -> None:
    programs = Programs()
    assert not programs.found(IMAGE, "/a", TRAIN, settled=True)
    programs.expect(IMAGE, "/a")
    programs.expect(IMAGE, "/b")
    assert programs.of(IMAGE) == [Running(None, settled=False)] * 2
    assert programs.found(IMAGE, "/a", TRAIN, settled=False)
    assert not programs.found(IMAGE, "/a", TRAIN, settled=False)
    assert programs.found(IMAGE, "/a", TRAIN, settled=True)
    assert not programs.found(OTHER, "/a", TRAIN, settled=True)
    assert programs.of(IMAGE) == [Running(TRAIN, settled=True), Running(None, settled=False)]
    programs.gone(IMAGE, "/b")
    programs.gone(OTHER, "/b")
    assert programs.of(IMAGE) == settled(TRAIN)
    programs.gone(IMAGE, "/a")
    assert programs.of(IMAGE) == []


keys = st.builds(Key, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "x", "y"]), st.sampled_from(["", "g"]))


@given(st.sets(keys), st.lists(st.builds(Running, st.none() | keys, settled=st.booleans()), max_size=4))
def test_whatever_runs_only_starts_of_it_are_chosen(known: set[Key], running: list[Running]) -> None:
    choice = choose(known, running)
    assert choice.keys <= known
    assert {key.entry for key in choice.keys} <= {one.key.entry for one in running if one.key is not None}
    assert not (choice.stranger and (choice.keys or not known or any(one.key is None or not one.settled for one in running)))
