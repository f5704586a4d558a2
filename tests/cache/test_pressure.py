"""Memory pressure: files are parsed or ignored, and the limit falls fast, grows slowly, and stays in its bounds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.pressure import (
    HIGH_PRESSURE,
    LOW_PRESSURE,
    Group,
    Pressure,
    Signs,
    decide,
    follow,
    parse_bytes,
    parse_cgroup,
    parse_pressure,
    parse_reclaimable,
)

MIB = 1024 * 1024
CEILING = 512 * MIB
FLOOR = 32 * MIB
CALM = "some avg10=0.00 avg60=12.00 avg300=0.00 total=5\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"
BUSY = "some avg10=45.50 avg60=0.00 avg300=0.00 total=5\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=0\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096\n", 4096), ("max\n", None), ("", None), ("-1\n", None), ("1 2", None), ("1e9", None), ("²", None), ("9" * 5000, None)],
)
def test_a_number_of_bytes(text: str, value: int | None) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (CALM, 0.0),
        (BUSY, 45.5),
        ("full avg10=9.00\n", None),
        ("some avg60=9.00\n", None),
        ("some avg10=\n", None),
        ("some avg10=nan\n", None),
        ("some avg10=-1\n", None),
        ("some avg10=101\n", None),
        ("\n\nsome\n", None),
        ("", None),
    ],
)
def test_the_pressure_is_that_of_anybody_in_the_last_ten_seconds(text: str, value: float | None) -> None:
    assert parse_pressure(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0::/system.slice/imagefs.service\n", "/system.slice/imagefs.service"),
        ("4:memory:/old\n1:cpu:/\n0::/\n", "/"),
        ("4:memory:/old\n", None),
        ("0::/../../above\n", None),
        ("0::relative\n", None),
        ("10::/not/version/two\n", None),
        ("", None),
    ],
)
def test_the_cgroup_is_that_of_version_2(text: str, value: str | None) -> None:
    assert parse_cgroup(text) == value


def test_dirty_pages_cannot_be_taken_back() -> None:
    assert parse_reclaimable("anon 5\ninactive_file 1000\nfile_dirty 100\nfile_writeback 10\nactive_file 7\n") == 890
    assert parse_reclaimable("inactive_file 10\nfile_dirty 100\n") == 0
    assert parse_reclaimable("inactive_file many\nnonsense\n\n") == 0


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    value = parse_bytes(text)
    assert value is None or value >= 0
    assert parse_pressure(text) is None
    assert parse_reclaimable(text) >= 0
    assert parse_cgroup(text) is None or "0::" in text


def _decide(signs: Signs, *, used: int = 0, limit: int = CEILING) -> int:
    return decide(signs, used=used, limit=limit, floor=FLOOR, ceiling=CEILING)


def test_under_pressure_the_limit_falls_below_what_is_used_and_grows_back_when_it_is_over() -> None:
    high, middle, none = Signs(pressure=HIGH_PRESSURE), Signs(pressure=HIGH_PRESSURE - 0.1), Signs(pressure=LOW_PRESSURE)
    limit = _decide(high, used=200 * MIB)
    assert limit == 150 * MIB
    assert _decide(middle, used=limit, limit=limit) == limit
    grown = _decide(none, used=limit, limit=limit)
    assert limit < grown <= limit + CEILING // 16
    for _ in range(20):
        limit = _decide(high, used=limit, limit=limit)
    assert limit == FLOOR
    for _ in range(40):
        limit = _decide(none, used=limit, limit=limit)
    assert limit == CEILING


def test_pressure_that_others_make_never_raises_the_limit() -> None:
    assert _decide(Signs(pressure=90.0), used=400 * MIB, limit=100 * MIB) == 75 * MIB


def test_a_cgroup_leaves_only_what_it_has_room_for() -> None:
    roomy, tight = Group(100 * MIB, 4096 * MIB), Group(950 * MIB, 1000 * MIB)
    assert _decide(Signs((roomy,)), used=100 * MIB) == CEILING
    assert _decide(Signs((roomy, tight)), used=100 * MIB) == 100 * MIB
    over = Group(1000 * MIB, 1000 * MIB)
    assert _decide(Signs((over, roomy)), used=100 * MIB) == 50 * MIB
    # Clean page cache goes by itself.
    assert _decide(Signs((Group(1000 * MIB, 1000 * MIB, reclaimable=300 * MIB),)), used=100 * MIB) == 350 * MIB


_SIZES = st.integers(0, 1 << 63)


@given(
    st.lists(st.builds(Group, _SIZES, _SIZES, _SIZES), max_size=3),
    st.none() | st.floats(0, 100),
    _SIZES,
    st.integers(0, CEILING),
    st.integers(0, CEILING),
)
def test_the_limit_stays_between_floor_and_ceiling(groups: list[Group], pressure: float | None, used: int, limit: int, floor: int) -> None:
    assert floor <= decide(Signs(tuple(groups), pressure), used=used, limit=limit, floor=floor, ceiling=CEILING) <= CEILING


def _tree(tmp_path: Path) -> tuple[Path, Path, Callable[[str, str], None]]:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return proc, mount, write


def test_nothing_to_look_at_is_no_pressure(tmp_path: Path) -> None:
    proc, mount, _ = _tree(tmp_path)
    pressure = Pressure.of_this_process(CEILING, lambda: 0, proc=proc, mount=mount)
    assert not pressure.has_signs
    assert pressure.sample() == CEILING


def test_the_limits_of_the_cgroups_above_hold_too(tmp_path: Path) -> None:
    proc, mount, write = _tree(tmp_path)
    write("proc/self/cgroup", "0::/outer/inner\n")
    write("cgroup/outer/inner/memory.max", "max\n")
    write("cgroup/outer/inner/memory.high", "max\n")
    write("cgroup/outer/inner/memory.current", f"{100 * MIB}\n")
    write("cgroup/outer/memory.max", f"{1000 * MIB}\n")
    write("cgroup/outer/memory.high", f"{400 * MIB}\n")
    write("cgroup/outer/memory.current", f"{360 * MIB}\n")
    write("cgroup/outer/memory.stat", f"inactive_file {10 * MIB}\n")
    # What lies above the mount point is none of ours.
    write("memory.max", "1\n")
    write("memory.current", "1\n")
    pressure = Pressure.of_this_process(CEILING, lambda: 100 * MIB, proc=proc, mount=mount)
    assert pressure.read() == Signs((Group(360 * MIB, 400 * MIB, 10 * MIB),))
    assert pressure.sample() == 130 * MIB


@pytest.mark.parametrize("current", [None, "", "max\n", "\xff\n"])
def test_a_cgroup_that_does_not_say_what_it_takes_says_nothing(tmp_path: Path, current: str | None) -> None:
    _, mount, write = _tree(tmp_path)
    write("cgroup/memory.max", "1000\n")
    if current is not None:
        write("cgroup/memory.current", current)
    assert Pressure(CEILING, lambda: 0, folders=[mount]).read() == Signs()


def test_the_pressure_of_the_own_cgroup_counts_and_else_that_of_the_system(tmp_path: Path) -> None:
    proc, mount, write = _tree(tmp_path)
    write("proc/self/cgroup", "0::/own\n")
    write("proc/pressure/memory", BUSY)
    pressure = Pressure.of_this_process(CEILING, lambda: 400 * MIB, proc=proc, mount=mount)
    assert pressure.read().pressure == 45.5
    assert pressure.sample() == 300 * MIB
    write("cgroup/own/memory.pressure", CALM)
    assert pressure.read().pressure == 0.0
    assert pressure.sample() == 316 * MIB


@pytest.mark.trio
async def test_each_sample_is_applied(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    proc, mount, write = _tree(tmp_path)
    write("proc/pressure/memory", BUSY)
    limits: list[int] = []
    pressure = Pressure.of_this_process(CEILING, lambda: limits[-1] if limits else CEILING, proc=proc, mount=mount)
    with trio.move_on_after(5):
        await follow(pressure, limits.append, interval=2)
    assert limits == [384 * MIB, 288 * MIB, 216 * MIB]


@pytest.mark.trio
async def test_where_there_is_nothing_to_look_at_following_ends() -> None:
    limits: list[int] = []
    await follow(Pressure(CEILING, lambda: 0), limits.append)
    assert not limits
