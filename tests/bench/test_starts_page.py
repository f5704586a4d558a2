"""What the bench of starts makes of samples: the floor, the bounds, where peers win, and a page and plot that say so."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench.starts import page
from bench.starts.measure import Sample
from bench.starts.place import Link
from bench.starts.plot import Bar, Panel, Scale, svg
from bench.starts.results import Results, bounds, wins

LINK = "20ms,200MB/s"
KINDS = {"native": "native", "pull": "pull", "rclone": "peer"}


def document(*samples: Sample, time: str = "2026-01-02T03:04:05+00:00", machine: str = "one") -> dict[str, Any]:
    names = dict.fromkeys(sample.system for sample in samples)
    return {
        "time": time,
        "machine": {"processor": machine},
        "versions": {"skopeo": "1"},
        "systems": [{"name": name, "title": name, "kind": KINDS.get(name, "ours"), "settings": "", "skipped": ""} for name in names],
        "workloads": {"torch": "`import torch`", "node": "Node"},
        "samples": [sample.document() for sample in samples],
    }


def start(system: str, seconds: float, *, megabytes: float = 0, workload: str = "torch", warm: bool = False, **more: Any) -> Sample:
    return Sample(workload, LINK, system, warm=warm, seconds=seconds, bytes=int(megabytes * 1e6), **({"round": 0} | more))


def test_the_floor_is_the_program_or_the_link() -> None:
    native, mine = start("native", 1.0), start("imagefs-kernel-none", 5.0, megabytes=100)
    assert Results([document(native, mine)]).floor("torch", LINK) == 1.0
    peer = start("rclone", 50.0, megabytes=800)
    results = Results([document(start("native", 1.0), start("imagefs-kernel-none", 5.0, megabytes=900), peer)])
    assert results.needed("torch", LINK) == 800e6
    assert results.floor("torch", LINK) == 4.0
    assert Results([document(mine)]).floor("torch", LINK) is None


def test_a_failed_start_is_no_figure() -> None:
    failed = start("rclone", 180.0, megabytes=1, error="rclone: no end after 180 s")
    results = Results([document(start("native", 1.0), failed, start("imagefs-kernel-none", 5.0, megabytes=100))])
    cell = results.cell("torch", LINK, "rclone")
    assert cell
    assert (cell.cold, cell.error) == (None, "rclone: no end after 180 s")
    assert results.needed("torch", LINK) == 100e6
    assert "| rclone | > 180 |" in page.page(results)
    assert "Failed: rclone: rclone: no end after 180 s" in page.page(results)


def test_a_later_document_counts_for_what_it_has() -> None:
    first = document(start("native", 1.0), start("pull", 9.0), start("native", 3.0, workload="node"))
    second = document(start("native", 2.0))
    results = Results([first, second])
    found = [results.cell(workload, LINK, system) for workload, system in (("torch", "native"), ("torch", "pull"), ("node", "native"))]
    assert [cell.cold for cell in found if cell] == [2.0, 9.0, 3.0]


def test_bounds() -> None:
    told = {"prefetch_bytes": 100, "prefetch_used_bytes": 90, "bytes_read": {"ram": 97, "store": 3}}
    samples = [
        start("native", 1.0),
        start("imagefs-kernel-none", 3.0, megabytes=100),
        start("imagefs-kernel-profile", 1.3, megabytes=100, figures=told),
        start("imagefs-kernel-optimized", 1.05, megabytes=100),
        start("imagefs-kernel-stranger", 3.3, megabytes=100),
        start("pull", 13.0),
        start("rclone", 3.0),
    ]
    found = {figure.name.partition(": ")[2]: (round(figure.value, 3), figure.holds) for figure in bounds(Results([document(*samples)]))}
    assert found == {
        "imagefs-kernel-profile / floor": (1.3, False),
        "imagefs-kernel-optimized / floor": (1.05, True),
        "rclone / imagefs-kernel-profile": (2.308, False),
        "pull / imagefs-kernel-profile": (10.0, True),
        "imagefs-kernel-profile / imagefs-kernel-none": (0.433, True),
        "imagefs-kernel-optimized / imagefs-kernel-none": (0.35, True),
        "imagefs-kernel-stranger / imagefs-kernel-none": (1.1, False),
        "prefetched bytes that were read": (0.9, False),
        "bytes read that were there": (0.97, False),
    }


def test_rounds_are_compared_with_each_other() -> None:
    samples = [start("imagefs-kernel-none", seconds, round=number) for number, seconds in enumerate((1.0, 10.0, 100.0))]
    samples += [start("imagefs-kernel-profile", seconds, round=number) for number, seconds in enumerate((0.9, 9.0, 200.0))]
    samples += [start("imagefs-kernel-profile", 1.0, round=7), start("imagefs-kernel-profile", 0.1, round=3, warm=True)]
    assert Results([document(*samples)]).paired("torch", LINK, "imagefs-kernel-profile", "imagefs-kernel-none") == pytest.approx(0.9)


def test_the_page_says_where_a_peer_wins() -> None:
    samples = [
        start("native", 0.1),
        start("imagefs-kernel-none", 2.0, megabytes=50),
        start("imagefs-fuse-none", 3.0, megabytes=40),
        start("imagefs-kernel-none", 0.5, warm=True),
        start("rclone", 2.5, megabytes=30),
        start("pull", 1.5, megabytes=500),
        start("pull", 0.2, warm=True),
    ]
    results = Results([document(*samples)])
    found = {(win.what, win.peer, win.theirs, win.ours, win.best) for win in wins(results)}
    assert found == {
        ("cold", "pull", 1.5, 2.0, "imagefs-kernel-none"),
        ("warm", "pull", 0.2, 0.5, "imagefs-kernel-none"),
        ("bytes", "rclone", 30e6, 40e6, "imagefs-fuse-none"),
    }
    text = page.page(results)
    section = text[text.index("## Where a peer wins") : text.index("## What has to be reached")]
    assert "| `import torch` | 20 ms and 200 MB/s | pull | 1.50 | 2.00 (imagefs-kernel-none) | 1.33 |" in section
    assert "| `import torch` | 20 ms and 200 MB/s | rclone | 30.0 | 40.0 (imagefs-fuse-none) | 1.33 |" in section


def test_the_page_says_so_where_none_wins() -> None:
    text = page.page(Results([document(start("native", 0.1), start("imagefs-kernel-none", 2.0), start("pull", 5.0, megabytes=1))]))
    assert "Nowhere in this run" in text


def test_what_ran_on_two_machines_is_said_to() -> None:
    text = page.page(Results([document(start("native", 1.0)), document(start("pull", 1.0), machine="another")]))
    assert "nothing may be compared" in text


def test_files_are_written_and_the_page_shows_its_plot(tmp_path: Path) -> None:
    written = page.write(Results([document(start("native", 0.1), start("imagefs-kernel-none", 2.0, megabytes=10))]), tmp_path)
    assert [path.name for path in written] == ["benchmarks.md", "starts-20ms-200mb-s.svg"]
    assert "](starts-20ms-200mb-s.svg)" in written[0].read_text()


def test_every_row_of_every_table_has_as_many_cells_as_its_head() -> None:
    failed = start("rclone", 1.0, error="a | bar\nand a line")
    text = page.page(Results([document(start("native", 0.1), start("imagefs-kernel-none", 2.0), start("pull", 5.0), failed)]))
    cells = 0
    for line in text.splitlines():
        count = line.count("|") if line.startswith("|") else 0
        assert count in {0, cells} or not cells
        cells = count


def test_a_plot_is_well_formed_and_bars_are_as_long_as_their_times() -> None:
    bars = [Bar("<one> & co", "ours", 0.1, None), Bar("two", "peer", 10.0, 1.0), Bar("three", "pull", None, None, "> 180")]
    drawn = svg("a <title>", [Panel("panel", bars, floor=1.0)])
    root = ET.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    widths = {
        box.get("class"): float(box.get("width", "0")) for box in root.iter(f"{space}rect") if box.get("height") == "11" and box.get("x")
    }
    bar = [float(box.get("width", "0")) for box in root.iter(f"{space}rect") if box.get("class") == "ours"]
    assert bar[-1] == 0
    assert widths["peer"] > 100
    assert "> 180" in [text.text for text in root.iter(f"{space}text")]
    assert "<one> & co" in [text.text for text in root.iter(f"{space}text")]


@pytest.mark.parametrize(("values", "low", "high"), [([0.2, 30], 0.1, 100), ([1.0], 1, 10), ([], 0.1, 10), ([0.1, 10], 0.1, 10)])
def test_a_scale_has_room_for_all(values: list[float], low: float, high: float) -> None:
    scale = Scale.over(values)
    assert scale.low == pytest.approx(low)
    assert scale.high == pytest.approx(high)
    assert all(0 <= scale.share(value) <= 1 + 1e-9 for value in values)
    assert scale.ticks()[-1] == pytest.approx(high)


@pytest.mark.parametrize("text", ["20ms,200MB/s", "100ms,1GB/s", "0ms,50kB/s", "1.5ms,999B/s"])
def test_a_link_reads_as_it_is_written(text: str) -> None:
    assert str(Link.parse(text)) == text


@pytest.mark.parametrize("text", ["", "20ms", "20ms,0MB/s", "20,200", "20ms,200MB/s "])
def test_what_is_no_link_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a link is written"):
        Link.parse(text)
