"""What is printed: within 100 columns, most important first, for any document."""

import msgspec
import pytest
from hypothesis import given

from imagefs.format.start import Start, decode
from imagefs_cli.explain import compare, text
from imagefs_cli.explain.analysis import Sum, analyse
from tests.explain.documents import FULL, document
from tests.explain.made import start, starts


def shown(events: int = 600, **how: object) -> list[str]:
    return text.lines(analyse(decode(msgspec.json.encode(document(events, **how)))))  # type: ignore[arg-type]


def test_what_to_do_comes_first() -> None:
    lines = shown()
    assert lines[0] == "torch:2.9 at /mnt/torch, kernel mode, " + lines[0][-19:]
    assert lines[1] == "  python3 -c import torch"
    assert lines[3].startswith("  Start it again: there was no profile yet")
    where = next(number for number, line in enumerate(lines) if "from the first access to the last" in line)
    names = [line.split()[0] for line in lines[where + 1 : where + 9]]
    assert names[:2] == ["program", "queue"]
    assert any(line.startswith("WAITED  FOR") for line in lines)
    assert any("GETs brought" in line for line in lines)


@given(starts(), starts())
def test_any_start_is_shown_in_100_columns(one: Start, other: Start) -> None:
    for lines in (text.lines(analyse(one)), compare.lines(analyse(one), analyse(other))):
        assert all(len(line) <= 100 for line in lines)
        assert all(line == line.rstrip() for line in lines)


def test_long_names_lose_their_beginning() -> None:
    files = [{"path": "/" + "deep/" * 40 + "file.so", "size": 10}]
    lines = text.lines(analyse(start(files=files, reads=[(0, 50_000, 0, 0, 1, 3, 0, -1)], mountpoint="/" + "m" * 200)))
    assert all(len(line) <= 100 for line in lines)
    assert any(line.endswith("/file.so") and "..." in line for line in lines)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ended": "running"}, "it is still going on"),
        ({"mode": "kernel"}, "what the kernel served by itself was not seen"),
        ({"lost": {"opens": 1, "reads": 2000, "gets": 0}}, "2,001 events found no room"),
        ({"label": "worker"}, "label worker"),
        ({"began": 1e12}, "app:1"),
    ],
)
def test_what_limits_the_picture_is_said(more: dict[str, object], said: str) -> None:
    assert said in "\n".join(text.lines(analyse(start(**more))))  # type: ignore[arg-type]


def test_nothing_read_is_a_short_answer() -> None:
    lines = text.lines(analyse(start()))
    assert len(lines) < 8
    assert "nothing has been read from this mount yet" in "\n".join(lines)


def test_folders_are_those_where_the_waits_are() -> None:
    files = [{"path": f"/usr/lib/{'torch' if number % 4 else 'numpy'}/sub{number % 2}/f", "size": 1} for number in range(40)]
    files += [{"path": f"/etc/x{number}", "size": 1} for number in range(40)]
    reads = [(number * 100, 90 if number < 40 else 1, number, 0, 1, 3, 0, -1) for number in range(80)]
    found = analyse(start(files=files, reads=reads))
    rows = dict(text.heaviest_folders(found))
    assert set(rows) == {"/usr/lib/numpy/sub0", "/usr/lib/torch/sub0", "/usr/lib/torch/sub1"}
    assert sum(total.wait_us for total in rows.values()) == 3600
    assert isinstance(next(iter(rows.values())), Sum)


def test_what_comes_from_an_image_cannot_steer_a_terminal() -> None:
    """The command escapes each line: see ``test_command``; nothing here may swallow a character that it has to see."""
    files = [{"path": "/a\x1b[31m", "size": 1}]
    assert any("\x1b[31m" in line for line in text.lines(analyse(start(files=files, reads=[(0, 50_000, 0, 0, 1, 3, 0, -1)]))))


def test_two_starts_beside_each_other() -> None:
    cold, warm = (analyse(decode(msgspec.json.encode(document(600, profile=profile)))) for profile in ("none", FULL))
    lines = compare.lines(warm, cold)
    length = next(line for line in lines if line.startswith("length"))
    assert "-" in length.split()[-2]
    told = compare.both(warm, cold)
    assert told["difference"]["length_us"] == told["start"]["length_us"] - told["other"]["length_us"] < 0
    assert told["difference"]["waits"]["first_byte"] < 0
    # With itself there is no difference, and no file to name.
    same = compare.both(cold, cold)["difference"]
    assert same["length_us"] == same["store_bytes"] == 0
    assert not any("FILE" in line for line in compare.lines(cold, cold))
