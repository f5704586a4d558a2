"""Merging: what many starts touch is what a slow and plain sum says, in whatever order they come, and there is never too much of it."""

import json
import random
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError
from imagefs.format import profile as module
from imagefs.format.accesses import EVERY_START, GRAIN, MAX_ACCESSES, Access
from imagefs.format.profile import (
    MAX_STARTS,
    MIN_SHARE,
    Key,
    Profile,
    Sample,
    Touch,
    covered,
    decode,
    encode,
    merge,
    merge_encoded,
    recorded,
    select,
)
from tests.format.profiles import MANIFEST, OBJECTS, OTHER, accesses, profiles, program

A, B, C = OBJECTS[:3]
moments = st.floats() | st.sampled_from([0.0, 1.0, 1.5e9, 1.5e9 + 1])
samples = st.lists(st.builds(Sample, profiles(), moments), min_size=1, max_size=6)


def one(*rows: tuple[bytes, int, int, int], key: Key = Key(), manifest: str = MANIFEST) -> Profile:  # noqa: B008 # a key does not change
    """One start: (object, first grain, last grain, when)."""
    return Profile(manifest, key, 1, [Access(name, start * GRAIN, end * GRAIN, at, EVERY_START) for name, start, end, at in rows])


def slowly(given_samples: list[Sample]) -> dict[tuple[bytes, int], tuple[int, int]]:
    """Merge grain by grain, as docs/format/profile.md says it: (object, grain) with share and time."""

    def age(sample: Sample) -> tuple[float, bytes]:
        when = sample.recorded
        return -when if when == when else float("inf"), encode(sample.profile)[-32:]  # noqa: PLR0124

    weights: list[int] = []
    touched: dict[tuple[bytes, int], int] = defaultdict(int)
    moment: dict[tuple[bytes, int], int] = defaultdict(int)
    for sample in sorted(given_samples, key=age):
        count = min(sample.profile.starts, MAX_STARTS - len(weights))
        own = [round(Fraction(2 ** (1 / 16)) ** -(rank % 16) * 2**31) >> rank // 16 for rank in range(len(weights), len(weights) + count)]
        weights += own
        for name, start, end, at, share in sample.profile.accesses if count else ():
            for grain in range(start // GRAIN, end // GRAIN):
                touched[name, grain] += sum(own) * share
                moment[name, grain] += sum(own) * share * at
    total = sum(weights)
    shares = {place: (value + total // 2) // total for place, value in touched.items()}
    return {
        place: (share, (moment[place] + touched[place] // 2) // touched[place]) for place, share in shares.items() if share >= MIN_SHARE
    }


def grains(profile: Profile) -> dict[tuple[bytes, int], tuple[int, int]]:
    return {(name, grain): (share, at) for name, start, end, at, share in profile.accesses for grain in range(start // GRAIN, end // GRAIN)}


# -- what it is ---------------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(samples)
def test_a_merge_is_the_sum_that_the_specification_says(given_samples: list[Sample]) -> None:
    merged = merge(given_samples)
    assert grains(merged) == slowly(given_samples)
    assert decode(encode(merged)) == merged


@settings(deadline=None)
@given(samples, st.randoms())
def test_no_order_makes_a_difference(given_samples: list[Sample], chance: random.Random) -> None:
    merged = merge(given_samples)
    shuffled = list(given_samples)
    chance.shuffle(shuffled)
    assert merge(iter(shuffled)) == merged
    assert encode(merge_encoded((encode(profile), when) for profile, when in shuffled)) == encode(merged)


@settings(deadline=None)
@given(profiles(least_share=MIN_SHARE), moments)
def test_a_merge_of_one_is_itself(profile: Profile, when: float) -> None:
    merged = merge([Sample(profile, when)])
    assert grains(merged) == grains(profile)
    assert (merged.manifest, merged.key, merged.starts) == (profile.manifest, profile.key, profile.starts)
    # A merge's ranges are as long as they can be, so it is itself to the byte from then on.
    assert merge([Sample(merged, when)]) == merged


@pytest.mark.parametrize("seed", range(5))
def test_only_the_newest_starts_count_however_many_come(seed: int) -> None:
    chance = random.Random(seed)

    def any_start() -> Profile:
        rows = [(name, chance.randrange(4), chance.randrange(4, 8), chance.randrange(9)) for name in chance.sample(OBJECTS, 3)]
        return replace(one(*rows), starts=chance.choice([1, 1, 2, 5]))

    given_samples = [Sample(any_start(), float(chance.randrange(200))) for _ in range(chance.randrange(120, 400))]
    merged = merge(given_samples)
    assert merged.starts == MAX_STARTS
    chance.shuffle(given_samples)
    assert merge(given_samples) == merged
    assert grains(merged) == slowly(given_samples)


def test_clocks_of_hosts_make_no_difference() -> None:
    """What counts is the store's time of a sample, and of that only which is newer: not by how much."""
    starts = [one((A, 0, 1, 10), (OBJECTS[number % 4], 8, 9, number)) for number in range(30)]
    merged = merge(Sample(profile, float(number)) for number, profile in enumerate(starts))
    assert merge(Sample(profile, 1e9 * (number + 1) ** 3) for number, profile in enumerate(starts)) == merged
    assert merge(Sample(profile, -1e9 / (number + 1)) for number, profile in enumerate(starts)) == merged


def test_a_time_that_is_none_is_the_oldest() -> None:
    old, new = one((A, 0, 1, 10)), one((B, 0, 1, 10))
    for forged in (float("nan"), float("-inf")):
        shares = {access.object: access.share for access in merge([Sample(old, forged), Sample(new, 1.0)]).accesses}
        assert shares[A] < shares[B]


def test_of_nothing_there_is_no_merge() -> None:
    with pytest.raises(ValueError, match="nothing"):
        merge([])


def test_damage_in_what_counts_is_told() -> None:
    data = encode(program(1, 10, 5))
    with pytest.raises(ImageFSError):
        merge_encoded([(data, 1.0), (data[:-40] + bytes([data[-40] ^ 1]) + data[-39:], 2.0)])


# -- what it is for -----------------------------------------------------------------------------------------------------------------------


def test_a_start_fades_with_the_starts_that_follow_it_not_with_time() -> None:
    """Something that one start touched: half as much after 16 more, and forgotten after a few dozen."""
    special, usual = one((A, 0, 1, 10), (B, 0, 1, 20)), one((B, 0, 1, 20))

    def share_after(newer: int) -> int:
        merged = merge([Sample(special, 0.0), *(Sample(usual, 1.0 + number) for number in range(newer))])
        assert {access.object: access.share for access in merged.accesses}[B] == EVERY_START
        return next((access.share for access in merged.accesses if access.object == A), 0)

    shares = [share_after(newer) for newer in range(40)]
    assert shares[0] == EVERY_START
    assert shares == sorted(shares, reverse=True)
    assert shares[3] > EVERY_START // 5
    assert shares[16] == 0
    # And what every second start touches stays, however old the oldest is.
    mixed = merge(Sample(special if number % 2 else usual, float(number)) for number in range(200))
    assert abs(mixed.accesses[0].share / EVERY_START - 0.5) < 0.03
    assert mixed.accesses[0].object == A


def test_the_order_of_need_is_that_of_most_starts() -> None:
    starts = [one((A, 0, 1, 100 + number % 5), (B, 0, 1, 200 - number % 7), (C, 0, 4, 300)) for number in range(20)]
    merged = merge(Sample(profile, float(number)) for number, profile in enumerate(starts))
    assert [access.object for access in merged.accesses] == [A, B, C]
    assert 100 <= merged.accesses[0].at <= 104


def test_ranges_that_were_cut_in_other_places_are_cut_at_all_of_them() -> None:
    merged = merge([Sample(one((A, 0, 4, 10), (A, 4, 8, 20)), 1.0), Sample(one((A, 2, 6, 40)), 1.0)])
    assert [(access.start // GRAIN, access.end // GRAIN) for access in sorted(merged.accesses)] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert merged.accesses[0].share < merged.accesses[-1].share == EVERY_START


def test_ranges_that_touch_and_are_alike_become_one() -> None:
    split = one((A, 0, 2, 10), (A, 2, 3, 10), (A, 3, 4, 11))
    assert [(access.start // GRAIN, access.end // GRAIN) for access in merge([Sample(split, 1.0)]).accesses] == [(0, 3), (3, 4)]


def test_a_merge_counts_as_the_starts_that_it_is_made_of() -> None:
    """Merging in two steps forgets what one step forgets, and gives about the same shares."""
    starts = [program(3, 200, 90, jitter=random.Random(number)) for number in range(40)]
    at_once = merge(Sample(profile, float(number)) for number, profile in enumerate(starts))
    half = merge(Sample(profile, float(number)) for number, profile in enumerate(starts[:20]))
    assert half.starts == 20
    twice = merge([Sample(half, 19.0), *(Sample(profile, float(number)) for number, profile in enumerate(starts) if number >= 20)])
    assert twice.starts == at_once.starts == 40
    before, after = grains(at_once), grains(twice)
    assert before.keys() == after.keys()
    assert max(abs(before[place][0] - after[place][0]) for place in before) < EVERY_START // 20


def test_what_keys_have_in_common_is_the_key_and_the_newest_names_the_image() -> None:
    first = one((A, 0, 1, 1), key=Key("python a", "train", "H200"))
    second = one((A, 0, 1, 1), key=Key("python b", "train", "H200"), manifest=OTHER)
    merged = merge([Sample(first, 1.0), Sample(second, 2.0)])
    assert merged.key == Key("", "train", "H200")
    assert merged.manifest == OTHER


# -- bounds -------------------------------------------------------------------------------------------------------------------------------


def test_a_merge_is_no_larger_than_a_profile_may_be_and_keeps_what_most_touch() -> None:
    """Two starts that read 65,536 things each, of which few are the same."""
    shared = [Access(A, 2 * number * GRAIN, (2 * number + 1) * GRAIN, 9_000_000, EVERY_START) for number in range(100)]

    def much(name: bytes) -> Profile:
        rows = [Access(name, 2 * number * GRAIN, (2 * number + 1) * GRAIN, number, EVERY_START) for number in range(MAX_ACCESSES - 100)]
        return Profile(MANIFEST, Key(), 1, [*shared, *rows])

    merged = merge([Sample(much(B), 1.0), Sample(much(C), 2.0)])
    assert len(merged.accesses) == MAX_ACCESSES
    kept = {(access.object, access.start): access for access in merged.accesses}
    assert all(kept[access.object, access.start].share == EVERY_START for access in shared)
    # Then those of the newer start, which weighs a little more; of the older one the first ones.
    assert sum(access.object == C for access in merged.accesses) == MAX_ACCESSES - 100
    assert len(encode(merged)) <= module.MAX_PROFILE


def test_of_starts_that_read_everything_fewer_count() -> None:
    everything = [Access(A, 2 * number * GRAIN, (2 * number + 1) * GRAIN, number, EVERY_START) for number in range(MAX_ACCESSES)]
    full = Profile(MANIFEST, Key(), 1, everything)
    merged = merge(Sample(replace(full, key=Key.of([str(number)])), float(number)) for number in range(20))
    assert merged.starts == module.MAX_MERGED // MAX_ACCESSES
    assert len(merged.accesses) == MAX_ACCESSES


@pytest.mark.parametrize("kind", ["alike", "apart"])
def test_a_thousand_profiles_of_ten_thousand_accesses_become_one(kind: str) -> None:
    """In under 5 s of CPU and 300 MB, also where they have nothing in common."""
    command = [sys.executable, "-m", "tests.format.merge_bench", kind]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=110, check=True)
    figures = json.loads(done.stdout)
    assert figures["cpu_seconds"] < 5, figures
    assert figures["rss_kib"] < 300_000_000 // 1024, figures
    assert figures["starts"] == MAX_STARTS
    assert (figures["accesses"] > 9_000) == (kind == "alike")


def test_the_profile_of_a_large_program_is_small_also_where_its_starts_differ() -> None:
    """3,000 accesses of 1,300 objects, as `import torch` makes; each start reads further here and less far there. As stored, by zstd."""
    starts = []
    for number in range(MAX_STARTS):
        chance = random.Random(number)
        usual = program(9, 3_000, 1_300, jitter=chance)
        starts.append(
            recorded(
                MANIFEST,
                usual.key,
                [
                    Touch(name, start, end + (chance.randrange(-1, 3) * GRAIN if chance.random() < 0.1 else 0), at)
                    for name, start, end, at, _ in usual.accesses
                ],
            )
        )
    merged = merge(Sample(profile, float(number)) for number, profile in enumerate(starts))
    assert len(merged.accesses) > 3_000
    assert len(zstandard.compress(encode(starts[0]), 3)) < 100_000
    assert len(zstandard.compress(encode(merged), 3)) < 150_000


# -- what was seen ------------------------------------------------------------------------------------------------------------------------

places = st.integers(0, 40).map(lambda half: half * GRAIN // 2) | st.integers(0, 20 * GRAIN)
touches = st.lists(
    st.builds(Touch, st.sampled_from(OBJECTS[:2]), places, places, st.integers(-3, 12) | st.just(1 << 40)),
    max_size=15,
)


@settings(deadline=None)
@given(touches)
def test_a_recording_has_each_grain_with_the_first_time_that_it_was_touched(given_touches: list[Touch]) -> None:
    expected: dict[tuple[bytes, int], tuple[int, int]] = {}
    for name, start, end, at in sorted(given_touches, key=lambda touch: touch.at):
        for grain in range(start // GRAIN, -(-end // GRAIN)) if start < end else ():
            expected.setdefault((name, grain), (EVERY_START, min(max(at, 0), (1 << 32) - 1)))
    made = recorded(MANIFEST, Key(), given_touches)
    assert grains(made) == expected
    assert made.starts == 1


def test_a_recording_is_cut_after_what_was_touched_first() -> None:
    many = [Touch(A, 2 * number * GRAIN, (2 * number + 1) * GRAIN, number) for number in range(MAX_ACCESSES + 10)]
    made = recorded(MANIFEST, Key(), reversed(many))
    assert len(made.accesses) == MAX_ACCESSES
    assert made.accesses[-1].at == MAX_ACCESSES - 1


def test_a_recording_is_made_of_anything() -> None:
    odd = [Touch(A, -5, 5, 1), Touch(B, 0, 1 << 70, 2), Touch(C, 1 << 60, 1 << 61, 3), Touch(b"short", 0, 5, 4), Touch(C, 5, 5, 6)]
    assert [access.object for access in recorded(MANIFEST, Key(), odd).accesses] == [A, B]


@settings(deadline=None)
@given(accesses(), accesses())
def test_how_much_is_covered_is_what_grains_say(part: list[Access], whole: list[Access]) -> None:
    first, second = Profile(MANIFEST, Key(), 1, part), Profile(MANIFEST, Key(), 1, whole)
    known = grains(second)
    parts = [
        Fraction(sum((access.object, grain) in known for grain in span), len(span))
        for access in part
        for span in [range(access.start // GRAIN, access.end // GRAIN)]
    ]
    assert covered(first.columns, second.columns) == pytest.approx(float(sum(parts) / len(parts)) if parts else 1.0)
    assert covered(first.columns, first.columns) == 1.0


# -- several keys -------------------------------------------------------------------------------------------------------------------------


def test_a_label_selects_its_own_starts_alone() -> None:
    train = Sample(one((A, 0, 1, 1), key=Key("python t", "train")), 1.0)
    serve = Sample(one((B, 0, 1, 1), key=Key("python s", "serve")), 2.0)
    plain = Sample(one((C, 0, 1, 1), key=Key("python t")), 3.0)
    given_samples = [train, serve, plain]
    assert select(given_samples, Key(label="train")) == train.profile
    assert select(given_samples, Key("python t", "train")) == train.profile
    assert select(given_samples, Key("python t")) == plain.profile
    assert select(given_samples, Key("python s")) is None
    assert select(given_samples, Key(label="none")) is None
    assert select([], None) is None
    everything = select(given_samples, None)
    assert everything is not None
    assert {access.object for access in everything.accesses} == {A, B, C}
    assert everything.key == Key()


def test_a_program_that_starts_all_day_does_not_make_the_other_one_forgotten() -> None:
    often = replace(one((A, 0, 1, 1), key=Key("often")), starts=64)
    once = one((B, 0, 1, 1), key=Key("rare"))
    both = select([Sample(often, 100.0), Sample(replace(once, starts=20), 1.0)], None)
    assert both is not None
    shares = {access.object: access.share for access in both.accesses}
    assert shares[A] > shares[B] > EVERY_START // 10


def test_what_is_selected_is_selected_in_any_order() -> None:
    given_samples = [Sample(one((digest_of(b"%d" % n), 0, 1, n), key=Key(str(n % 5))), float(n % 3)) for n in range(30)]
    assert select(given_samples, None) == select(reversed(given_samples), None)
