"""The page of ``imagefs explain``, as a person uses it: in Chromium, with the mouse and the keyboard."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.explain.browser import CTRL, SHIFT, Page
from tests.explain.conftest import Opened
from tests.explain.documents import FULL, HALF, document

APP = "imagefsExplain.app"
TABLE = "[...document.querySelectorAll('#slowest tr')].map(row => [...row.cells].map(cell => cell.textContent))"
UNNAMED = """[...document.querySelectorAll('button, input, select, [tabindex]')]
  .filter(one => !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).map(one => one.id)"""
FRAME_MS = 16.0
OPEN_MS = 3000.0


def with_path(made: dict[str, Any]) -> dict[str, Any]:
    """Add a critical path: what the first process waited for."""
    steps, at = [], 0
    for number, (begin, wait, *_, process, _get) in enumerate(made["reads"]):
        if process == 0 and wait and begin >= at:
            at = begin + wait
            steps.append([begin, at, number])
    return made | {"path": steps}


def one_read(**over: Any) -> dict[str, Any]:
    """A start with one file that waits for one GET: 1 ms until it is queued, then 2, 20, 10, and 8, 4 of them to decode, 2 to verify."""
    get = [11_000, 13_000, 33_000, 43_000, 51_000, 4_000, 2_000, 0, 0, 100_000, 300_000, 0, -1, 1]
    return {
        "format": 1,
        "kind": "start",
        "manifest": "ab" * 32,
        "ref": "one:1",
        "began": 1767225600.0,
        "seconds": 0.06,
        "ended": "quiet",
        "files": [{"path": "/data/one.bin", "object": "cd" * 32, "size": 200_000, "profiled": 0}],
        "processes": [{"pid": 7, "command": "reader", "parent": -1}],
        "packs": ["ef" * 32],
        "opens": [[9_000, 0, 0, 0]],
        "reads": [[10_000, 43_000, 0, 0, 150_000, 3, 0, 0]],
        "gets": [get],
    } | over


def plain(text: str) -> str:
    """Return what the page says with the dashes and minuses of a keyboard."""
    return text.translate({0x2013: "-", 0x2212: "-"})


def said(tab: Page, selector: str) -> str:
    return plain(tab.text(selector))


def rows(tab: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tab.run("imagefsExplain.visible()")
    return found


def row(tab: Page, label: str) -> dict[str, Any]:
    return next(found for found in rows(tab) if found["label"] == label)


def view(tab: Page, which: int = 0) -> tuple[float, float]:
    """Which stretch of a start's time is seen, in us since its mount."""
    begin, end = tab.run(f"[{APP}.view.of({APP}.starts[{which}])].flatMap(seen => [seen.from, seen.to])")
    return begin, end


def place(tab: Page, time: float, which: int = 0) -> float:
    """Where a time of a start is, in pixels of the tab."""
    return float(tab.box("#chart")[0] + tab.run(f"{APP}.chart.place({time}, {which}, {APP})"))


def middle(tab: Page) -> float:
    return sum(view(tab)) / 2


def height(tab: Page, found: dict[str, Any]) -> float:
    return float(tab.box("#chart")[1] + found["top"] + found["height"] / 2)


def pixel(tab: Page, x: float, y: float) -> str:
    """Return what colour the chart has at a place of the tab."""
    left, top, _, _ = tab.box("#chart")
    data = f"document.querySelector('#canvas').getContext('2d').getImageData({x - left}, {y - top}, 1, 1).data"
    return "#{:02x}{:02x}{:02x}".format(*tab.run(f"[...{data}]")[:3])


def colour(tab: Page, name: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*tab.run(f"{APP}.palette.css[{json.dumps(name)}].match(/\\d+/g).map(Number)"))


def choose(tab: Page, selector: str, value: str) -> None:
    tab.run(f"(s => {{ s.value = {json.dumps(value)}; s.dispatchEvent(new Event('change')); }})(document.querySelector('{selector}'))")
    tab.painted()


def search(tab: Page, text: str) -> None:
    tab.press("#search")
    tab.run("document.querySelector('#search').select()")
    tab.type(text)
    tab.key("Enter")


def test_it_is_one_file_and_asks_for_nothing_else(opened: Opened, tmp_path: Path) -> None:
    tab = opened(document(300))
    assert tab.requests == [(tmp_path / "0.html").as_uri()]
    assert "torch:2.9" in said(tab, "#title")
    assert tab.run("fetch('https://example.invalid/').then(() => 'let through', () => 'refused')") == "refused"
    tab.run("document.head.append(Object.assign(document.createElement('script'), {textContent: 'window.inlined = 1'}))")
    assert tab.run("window.inlined") is None
    refused = tab.problems
    assert refused
    assert all("Content Security Policy" in problem for problem in refused)
    tab.browser.events.clear()  # they were asked for


HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "']});alert(2);//",
    "`${alert(3)}`",
    "{{POLICY}}{{SCRIPT}}",
    "\\u003cscript\\u003ealert(4)\\u003c/script\\u003e",
    "&lt;b&gt;&quot;",
    "__proto__",
    "constructor",
]


def test_a_hostile_name_is_text_and_nothing_else(opened: Opened) -> None:
    made = one_read(
        ref=HOSTILE[0],
        label=HOSTILE[1],
        gpu=HOSTILE[2],
        entry=HOSTILE,
        mode=HOSTILE[0],
        sentence=f"Do {HOSTILE[0]} next.",
        files=[{"path": f"/{name}", "size": 10, "profiled": 0} for name in HOSTILE],
        processes=[{"pid": number, "command": name, "parent": -1} for number, name in enumerate(HOSTILE)],
        reads=[[1000 * number, 500, number, 0, 10, 1, number, -1] for number in range(len(HOSTILE))],
        packs=[HOSTILE[0]],
        opens=[],
    )
    tab = opened(made)
    assert HOSTILE[0] in said(tab, "#title")
    assert said(tab, "#sentence").strip() == f"Do {HOSTILE[0]} next."
    assert set(tab.run("[...document.querySelectorAll('#slowest tbody th')].map(cell => cell.textContent)")) == {
        f"/{name}" for name in HOSTILE
    }
    for by in ("process", "tier", "file", "directory"):
        tab.press(f"input[value={by}] + span")
        tab.press("#expand")
        for found in rows(tab):
            tab.click(place(tab, middle(tab)), height(tab, found))
    assert tab.run("document.querySelectorAll('img, script').length") == 2
    assert tab.dialogs == 0


def test_names_that_hide_what_they_are_are_shown_with_escapes(opened: Opened) -> None:
    names = ["/byte\udcff", "/turned\u202egpj.exe", "/nothing\u200b", "/bell\x07", "/lone\ud800", "/ümlaut 文字"]
    files = [{"path": name, "size": 1, "profiled": 0} for name in names]
    tab = opened(one_read(files=files, reads=[[n * 10, 5, n, 0, 1, 1, 0, -1] for n in range(6)], opens=[], gets=[]))
    shown = tab.run("[...document.querySelectorAll('#slowest tbody th')].map(cell => cell.textContent)")
    assert set(shown) == {r"/byte\xff", r"/turned\u{202e}gpj.exe", r"/nothing\u{200b}", r"/bell\x07", r"/lone\u{d800}", "/ümlaut 文字"}


def test_the_wheel_zooms_at_the_pointer(opened: Opened) -> None:
    tab = opened(document(1000))
    x, y = place(tab, 500_000), tab.box("#chart")[1] + 100
    before = view(tab)
    tab.wheel(x, y, -300, modifiers=CTRL)
    after = view(tab)
    assert after[1] - after[0] < 0.7 * (before[1] - before[0])
    assert place(tab, 500_000) == pytest.approx(x, abs=1.5)
    tab.wheel(x, tab.box("#chart")[1] + 10, -300)  # the axis needs no key
    assert view(tab)[1] - view(tab)[0] < 0.7 * (after[1] - after[0])
    tab.press("#reset")
    assert view(tab) == before


def test_a_drag_moves_and_a_drag_on_the_axis_takes_a_stretch(opened: Opened) -> None:
    tab = opened(document(1000))
    top = tab.box("#chart")[1]
    tab.drag((place(tab, 200_000), top + 10), (place(tab, 400_000), top + 10))
    assert view(tab) == pytest.approx((200_000, 400_000), rel=0.02)
    tab.drag((place(tab, 300_000), top + 200), (place(tab, 250_000), top + 200))
    assert view(tab) == pytest.approx((250_000, 450_000), rel=0.02)
    tab.drag((place(tab, 300_000), top + 200), (place(tab, 400_000), top + 200), modifiers=SHIFT)
    assert view(tab) == pytest.approx((300_000, 400_000), rel=0.02)
    left, strip, width, tall = tab.box("#overview")
    tab.press("#reset")
    tab.drag((left + width * 0.25, strip + tall / 2), (left + width * 0.75, strip + tall / 2))
    begin, end = tab.run(f"[{APP}.view.allOf({APP}.starts[0])].flatMap(all => [all.from, all.to])")
    assert view(tab) == pytest.approx((begin + 0.25 * (end - begin), begin + 0.75 * (end - begin)), rel=0.03)


def test_keys_zoom_move_and_reset(opened: Opened) -> None:
    tab = opened(document(1000))
    whole = view(tab)
    tab.run("document.querySelector('#chart').focus()")
    tab.key("+")
    zoomed = view(tab)
    assert zoomed[1] - zoomed[0] == pytest.approx((whole[1] - whole[0]) / 1.5)
    tab.key("ArrowRight")
    assert view(tab)[0] > zoomed[0]
    tab.key("-")
    tab.key("0")
    assert view(tab) == whole


def test_a_double_click_shows_one_read_large(opened: Opened) -> None:
    made = one_read()
    made["reads"].append([500_000, 20_000, 0, 0, 10, 2, 0, -1])
    tab = opened(made)
    tab.press("#expand")
    at = place(tab, 510_000), height(tab, row(tab, "one.bin"))
    tab.click(*at)
    tab.mouse("mousePressed", *at, clickCount=2)
    tab.mouse("mouseReleased", *at, clickCount=2)
    tab.painted()
    begin, end = view(tab)
    assert end - begin < 50_000
    assert begin < 500_000
    assert end > 520_000


def test_search_finds_paths_and_processes(opened: Opened) -> None:
    tab = opened(document(1000))
    everything = tab.run(f"{APP}.forest.leaves.length")
    search(tab, "sympy")
    assert 0 < tab.run(f"{APP}.forest.leaves.length") < everything
    assert tab.run(f"{APP}.forest.leaves.every(leaf => {APP}.union.paths[leaf.file].includes('sympy'))")
    assert all("sympy" in text for text in tab.run("[...document.querySelectorAll('#slowest tbody th')].map(cell => cell.textContent)"))
    assert said(tab, "#found").endswith("of 333")
    search(tab, "ldconfig torch/nn")  # all words, each in the path or the process
    found = tab.run(f"{APP}.forest.leaves.map(leaf => [{APP}.union.paths[leaf.file], leaf.totals[0].reads])")
    assert found
    assert all("torch/nn" in path for path, _ in found)
    by_ldconfig = tab.run(f"{APP}.mask[0].reads.reduce((sum, one) => sum + one, 0)")
    assert by_ldconfig == sum(reads for _, reads in found)
    search(tab, "nothing is called so")
    assert [found for found in rows(tab) if found["type"] in {"file", "group"}] == []
    tab.press("#search")
    tab.key("Escape")
    assert tab.run(f"{APP}.forest.leaves.length") == everything


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        ("tier", ["Store", "SSD", "RAM", "Tree", "Kernel alone"]),
        ("process", ["python3", "ldconfig"]),
        ("directory", ["/usr/lib/python3"]),
    ],
)
def test_files_are_grouped(opened: Opened, by: str, labels: list[str]) -> None:
    made = document(1000)
    tab = opened(made)
    tab.press(f"input[value={by}] + span")
    groups = tab.run(
        f"{APP}.forest.root.children.map(node => [node.label, node.totals[0].reads, node.totals[0].opens, node.totals[0].wait])"
    )
    assert [label for label, *_ in groups] == labels
    assert sum(reads for _, reads, *_ in groups) == len(made["reads"])
    assert sum(opens for _, _, opens, _ in groups) == len(made["opens"])
    assert sum(wait for *_, wait in groups) == sum(read[1] for read in made["reads"])
    if by == "tier":
        by_tier = [sum(read[5] == tier for read in made["reads"]) for tier in (3, 2, 1, 0)]
        assert [reads for _, reads, *_ in groups][:4] == by_tier
        assert groups[4][2] == sum(opened[3] for opened in made["opens"])


def test_groups_open_and_close(opened: Opened) -> None:
    tab = opened(document(1000))
    tab.press("#collapse")
    assert [found["type"] for found in rows(tab)] == ["link", "group"]
    group = rows(tab)[1]
    tab.click(tab.box("#chart")[0] + 100, height(tab, group))
    assert len(rows(tab)) > 5
    assert row(tab, group["label"])["isOpen"]
    tab.click(tab.box("#chart")[0] + 100, height(tab, row(tab, group["label"])))
    assert [found["type"] for found in rows(tab)] == ["link", "group"]


def test_without_groups_files_come_as_they_were_accessed_waited_for_or_called(opened: Opened) -> None:
    made = document(300)
    tab = opened(made)
    tab.press("input[value=file] + span")
    labels = "imagefsExplain.app.forest.root.children.map(node => node.label)"
    first = list(dict.fromkeys(made["files"][opened[1]]["path"] for opened in made["opens"]))
    assert tab.run(labels) == first
    choose(tab, "#order", "name")
    assert tab.run(labels) == sorted(first)
    choose(tab, "#order", "most")
    waits = {file["path"]: 0 for file in made["files"]}
    for read in made["reads"]:
        waits[made["files"][read[2]]["path"]] += read[1]
    assert [waits[path] for path in tab.run(labels)] == sorted((waits[path] for path in first), reverse=True)


def test_only_rows_in_view_are_left_when_that_is_asked_for(opened: Opened) -> None:
    made = document(1000)
    tab = opened(made)
    tab.press("input[value=file] + span")
    everything = tab.run(f"{APP}.layout.rows.length")
    tab.press("#inview")
    tab.run(f"{APP}.view.set(300000 - {APP}.starts[0].begun, 320000 - {APP}.starts[0].begun)")
    tab.painted()
    within = tab.run(f"{APP}.layout.rows.filter(row => row.node).map(row => {APP}.union.paths[row.node.file])")
    seen = {made["files"][read[2]]["path"] for read in made["reads"] if read[0] <= 320_000 and read[0] + read[1] >= 300_000}
    seen |= {made["files"][opened[1]]["path"] for opened in made["opens"] if 300_000 <= opened[0] <= 320_000}
    assert set(within) == seen
    assert 0 < len(within) < everything / 4
    tab.press("#inview")
    assert tab.run(f"{APP}.layout.rows.length") == everything


def test_a_bar_lies_where_the_read_waited_in_the_colour_of_its_tier(opened: Opened) -> None:
    tab = opened(one_read())
    tab.press("#expand")
    y = height(tab, row(tab, "one.bin"))
    tab.mouse("mouseMoved", 5, 5, button="none")
    tab.painted()
    assert pixel(tab, place(tab, 31_000), y) == colour(tab, "store")
    assert pixel(tab, place(tab, 52_000) - 3, y) == colour(tab, "store")
    assert pixel(tab, place(tab, 9_500), y) == colour(tab, "back")
    assert pixel(tab, place(tab, 8_000), y) == colour(tab, "beyond")
    choose(tab, "#colour", "wait")
    for at, phase in [
        (10_500, "daemon"),
        (12_000, "queue"),
        (20_000, "first"),
        (40_000, "transfer"),
        (45_000, "decode"),
        (48_000, "verify"),
    ]:
        assert pixel(tab, place(tab, at), y) == colour(tab, phase), phase
    assert pixel(tab, place(tab, 52_000), y) == colour(tab, "daemon")


def test_what_is_seen_from_afar_is_what_is_seen_of_each_read(opened: Opened) -> None:
    """Rows of many reads are added up in bins before they are painted: the picture must be that of the reads themselves."""
    tab = opened(document(30_000))
    script = f"""(() => {{
      const app = {APP}, bars = app.chart.bars, {{reads, peak}} = app.forest.events(app.forest.root, 0);
      const paint = (list) => {{
        app.chart.surface.clear(0);
        bars.waits(app.starts[0].spans, list, peak, "tier", app.view, {{left: 0, top: 0, bottom: 200}});
        return Array.from({{length: bars.columns}}, (_, x) => {{
          let filled = 0;
          for (let y = 0; y < 200; y++) filled += app.chart.surface.pixels[y * app.chart.surface.width + x] ? 1 : 0;
          return filled;
        }});
      }};
      const far = paint(reads);
      // The same reads, each list too short to be added up.
      const sums = far.map(() => 0);
      for (let at = 0; at < reads.length; at += 1000) paint(reads.slice(at, at + 1000)).forEach((filled, x) => (sums[x] += filled));
      return far.map((filled, x) => [filled, sums[x]]);
    }})()"""
    columns = tab.run(script)
    assert len(columns) > 500
    assert statistics.mean(abs(far - near) for far, near in columns) < 4


def test_hover_and_click_tell_who_asked_and_what_for(opened: Opened) -> None:
    tab = opened(one_read())
    tab.press("#expand")
    x, y = place(tab, 30_000), height(tab, row(tab, "one.bin"))
    tab.mouse("mouseMoved", x, y, button="none")
    tab.painted()
    tip = said(tab, "#tip")
    assert "/data/one.bin" in tip
    for part in ("queue 2.00 ms", "first byte 20.0 ms", "transfer 10.0 ms", "decode 4.00 ms", "verify 2.00 ms", "daemon 5.00 ms"):
        assert part in tip
    tab.click(x, y)
    details = said(tab, "#details")
    for part in ("reader (7)", "43.0 ms", "store", "0 - 150,000", "100 kB for 300 kB of content", "150 kB of it touched", "there was none"):
        assert part in details
    tab.click(place(tab, 38_000), tab.box("#chart")[1] + row(tab, "link/0")["top"] + 8)
    details = said(tab, "#details")
    for part in ("GET 0", "2.00 ms", "after 20.0 ms", "100 kB for 300 kB of content", "efefefefefef 0 - 100,000", "1 read"):
        assert part in details
    tab.key("Escape")
    assert "Click a bar" in said(tab, "#details")


def test_the_summary_says_what_the_start_comes_to(opened: Opened) -> None:
    tab = opened(with_path(one_read(sentence="Start it again.")))
    assert said(tab, "#sentence").strip() == "Start it again."
    summary = said(tab, "#summary")
    # 44 ms from the first access to the last answer, of which 43 on the critical path; 150 of 300 kB that came were touched.
    for part in ("44.0 ms", "program 1.00 ms", "first byte 20.0 ms", "daemon 5.00 ms", "store 150 kB", "50 %", "of 300 kB", "none"):
        assert part in summary, part
    waiting = opened(one_read())
    assert "What reads waited for" in said(waiting, "#summary")
    assert "program" not in said(waiting, "#summary")


def test_what_is_not_known_or_lost_is_said(opened: Opened) -> None:
    tab = opened(one_read(lost={"opens": 0, "reads": 1234, "gets": 5}, watched=False, ended="running"))
    notes = said(tab, "#notes")
    assert "1,234 reads" in notes
    assert "5 gets" in notes
    assert "could not be watched" in notes
    assert "still going on" in notes


def test_the_table_sorts_and_shows_more_and_leads_to_the_chart(opened: Opened) -> None:
    made = document(1000)
    tab = opened(made)
    shown = "[...document.querySelectorAll('#slowest tbody tr')].map(row => row.cells[{}].textContent)"
    assert len(tab.run(shown.format(0))) == 50
    tab.press("#more")
    assert len(tab.run(shown.format(0))) == 100
    tab.press("#slowest thead th:nth-child(1) button")
    names = tab.run(shown.format(0))
    assert names == sorted(names)
    assert tab.run("document.querySelector('#slowest thead th').ariaSort") == "ascending"
    tab.press("#slowest thead th:nth-child(2) button")
    waits: dict[str, int] = {}
    for read in made["reads"]:
        path = made["files"][read[2]]["path"]
        waits[path] = waits.get(path, 0) + read[1]
    slowest = max(waits, key=lambda path: waits[path])
    assert tab.run(shown.format(0))[0] == slowest
    tab.press("#slowest tbody tr:nth-child(1) th button")
    chosen = tab.run(f"{APP}.layout.rows[{APP}.cursor].node.file")
    assert tab.run(f"{APP}.union.paths[{chosen}]") == slowest
    assert slowest.rsplit("/", 1)[1] in {found["label"] for found in rows(tab)}
    assert slowest in said(tab, "#details")


def test_it_is_used_and_heard_without_a_mouse(opened: Opened) -> None:
    tab = opened(one_read())
    tab.press("#collapse")
    tab.run("document.querySelector('#chart').focus()")
    tab.key("ArrowDown")
    tab.key("ArrowDown")
    assert "/data" in said(tab, "#said")
    tab.key("Enter")
    tab.key("ArrowDown")
    assert "/data/one.bin" in said(tab, "#said")
    tab.key("]")
    assert "waited 43.0 ms" in said(tab, "#said")
    tab.key("f")
    assert view(tab)[0] == pytest.approx(0, abs=1) or view(tab)[0] > 0
    tab.key("/")
    assert tab.run("document.activeElement.id") == "search"
    assert tab.run(UNNAMED) == []
    assert tab.run("document.querySelector('#slowest caption').innerText")


def test_two_starts_are_compared_on_one_scale_by_path(opened: Opened) -> None:
    fast = one_read(ref="one:2", reads=[[2_000, 13_000, 0, 0, 150_000, 1, 0, -1]], gets=[], opens=[])
    slow = one_read(
        files=[{"path": "/other", "size": 5, "profiled": 0}, {"path": "/data/one.bin", "size": 200_000, "profiled": 0}],
        reads=[[1_000, 100, 0, 0, 5, 0, 0, -1], [10_000, 43_000, 1, 0, 150_000, 3, 0, 0]],
        opens=[],
    )
    tab = opened(fast, slow)
    tab.press("#expand")
    totals = row(tab, "one.bin")["totals"]
    assert [total["wait"] for total in totals] == [13_000, 43_000]
    assert [total["reads"] for total in row(tab, "other")["totals"]] == [0, 1]
    panes = tab.run(f"{APP}.chart.panes")
    assert panes[0]["right"] - panes[0]["left"] == pytest.approx(panes[1]["right"] - panes[1]["left"])
    y = height(tab, row(tab, "one.bin"))
    tab.mouse("mouseMoved", 5, 5, button="none")
    tab.wheel(place(tab, 12_000, 1), tab.box("#chart")[1] + 30, -200)
    tab.mouse("mouseMoved", 5, 5, button="none")
    tab.painted()
    # Zoom is one for both, and the same time after the first access, which came 2 and 1 ms after the mount, is at the same place.
    assert view(tab, 1)[1] - view(tab, 1)[0] < 45_000
    assert place(tab, 13_000, 0) - panes[0]["left"] == pytest.approx(place(tab, 12_000, 1) - panes[1]["left"], abs=0.01)
    assert pixel(tab, place(tab, 12_500, 0), y) == colour(tab, "ram")
    assert pixel(tab, place(tab, 12_500, 1), y) == colour(tab, "store")
    table = [[plain(cell) for cell in cells] for cells in tab.run(TABLE)]
    assert table[0][:4] == ["File", "Waited A", "Waited B", "A - B ▾"]
    assert table[1][:4] == ["/data/one.bin", "13.0 ms", "43.0 ms", "-30.0 ms"]
    assert table[2][:4] == ["/other", "-", "100 µs", "-100 µs"]
    assert "A - B" in said(tab, "#summary")
    assert "-39.0 ms" in said(tab, "#summary")


def test_processes_of_two_starts_are_one_by_their_commands(opened: Opened) -> None:
    here = one_read(processes=[{"pid": 1, "command": "a", "parent": -1}, {"pid": 2, "command": "a", "parent": -1}])
    there = one_read(processes=[{"pid": 900, "command": "b", "parent": -1}, {"pid": 901, "command": "a", "parent": -1}])
    there["reads"] = [[10_000, 1_000, 0, 0, 10, 1, 1, -1]]
    there["opens"] = []
    tab = opened(here, there)
    tab.press("input[value=process] + span")
    groups = tab.run(f"{APP}.forest.root.children.map(node => [node.label, ...node.totals.map(total => total.reads)])")
    assert groups == [["a", 1, 1]]


def test_light_and_dark_by_preference_and_by_choice(opened: Opened, tmp_path: Path) -> None:
    light, dark = opened(document(300)), opened(document(300), scheme="dark")
    assert colour(light, "back") == "#ffffff"
    assert colour(dark, "back") == "#14171c"
    for tab in (light, dark):
        at = tab.box("#chart")
        assert pixel(tab, at[0] + 3, at[1] + at[3] - 3) == colour(tab, "back")
    assert light.screenshot() != dark.screenshot()
    light.prefer("dark")
    light.painted()
    assert colour(light, "back") == "#14171c"
    light.press("#theme")
    assert said(light, "#theme") == "Theme: light"
    assert colour(light, "back") == "#ffffff"
    light.press("#theme")
    assert colour(light, "back") == "#14171c"


@pytest.mark.parametrize(
    "made",
    [
        {"format": 1, "kind": "start", "manifest": "ab" * 32, "began": 0.0, "seconds": 0.0, "ended": "quiet"},
        one_read(reads=[], gets=[], opens=[]),
        one_read(reads=[]),
        one_read(gets=[[11_000, *[-1] * 4, 0, 0, 0, 0, 10, 0, 1, -1, 0]], ended="running"),
        one_read(gets=[[11_000, 12_000, 13_000, 20_000, -1, 0, 0, 0, 0, 10, 0, 0, 11_000, 3]]),
        one_read(gets=[[0, 0, 0, 0, 0, 0, 0, -1, 5, 5, 0, 2, -5, 0]], touched=[[0, 0, 2**53]]),
        one_read(reads=[[-5_000, 2**53, 0, 2**52, 2**53, 3, -1, -1]], opens=[[2**53, 0, -1, 1]]),
        one_read(reads=[[0, 0, 0, 0, 0, 0, -1, -1]] * 3, opens=[[-(2**53), 0, -1, 0]]),
        one_read(files=[{"path": ""}, {"path": "", "object": "ab" * 32}, {"path": "//"}, {"path": "/a/"}, {"path": "relative/x"}])
        | {"reads": [[n * 100, 50, n, 0, 1, 1, 0, -1] for n in range(5)]},
        one_read(reads=[[10_000, 43_000, 0, 0, 150_000, 3, 0, 0, "later", "versions"]], unknown={"a": 1}, path=[]),
        one_read(processes=[{"pid": 7}, {"pid": 8, "command": "x", "parent": 1}], image=None, profile=None, stats={}, lost={}),
    ],
    ids=["head", "no events", "no reads", "under way", "arrived", "odd", "far", "nothing", "no paths", "later version", "little known"],
)
def test_every_sound_document_has_a_page(opened: Opened, made: dict[str, Any]) -> None:
    tab = opened(made)
    for by in ("process", "tier", "file", "directory"):
        tab.press(f"input[value={by}] + span")
        tab.press("#expand")
    choose(tab, "#colour", "wait")
    for found in rows(tab):
        tab.click(place(tab, middle(tab)), height(tab, found))
        tab.click(tab.box("#chart")[0] + 50, height(tab, found))
    other = opened(made, one_read())
    assert len(rows(other)) >= 2
    assert tab.run("document.querySelector('#loading').hidden")


def measured(tab: Page) -> tuple[float, float]:
    """Zoom and pan for 60 frames; return how long drawing takes if nothing else is in its way, and CPU time, both in ms a frame.

    The first is that of a quarter of the frames or less. The second is all that the tab's main thread does.
    """
    before = tab.cpu_seconds
    draws = tab.run("imagefsExplain.measure(60)")["draw"]
    return statistics.quantiles(draws)[0], (tab.cpu_seconds - before) * 1000 / 60


@pytest.mark.timeout(300)
@pytest.mark.parametrize("compared", [False, True], ids=["one", "two"])
def test_a_hundred_thousand_events_open_quickly_and_stay_smooth(opened: Opened, tmp_path: Path, compared: bool) -> None:
    made = [with_path(document(100_000)), with_path(document(100_000, profile=HALF, seed=4))][: 1 + compared]
    assert sum(len(made[0][kind]) for kind in ("reads", "opens", "gets")) >= 100_000
    tab = opened(*made)
    took = [(tab.run("imagefsExplain.opened"), tab.cpu_seconds * 1000)]
    for _ in range(2):  # the machine may be busy with something else: what counts is the best of three, and what it costs in CPU time
        before = tab.cpu_seconds
        tab.open(tmp_path / "0.html")
        took.append((tab.run("imagefsExplain.opened"), (tab.cpu_seconds - before) * 1000))
    assert min(wall for wall, _ in took) < OPEN_MS * (1 + compared)
    assert min(cpu for _, cpu in took) < OPEN_MS
    assert tab.run("document.querySelectorAll('*').length") < 2500, "there is an element an event"
    found = {"as it opens": measured(tab)}
    choose(tab, "#colour", "wait")
    found["by wait"] = measured(tab)
    tab.press("input[value=file] + span")
    found["without groups"] = measured(tab)
    tab.run(f"{APP}.view.set(0, {APP}.view.wholeTo / 8)")
    found["nearer"] = measured(tab)
    for what, (draw, cpu) in found.items():
        assert draw < FRAME_MS, (what, found)
        assert cpu < FRAME_MS, (what, found)


def test_the_files_that_a_profile_knew_are_told_apart(opened: Opened) -> None:
    tab = opened(document(1000, profile=FULL))
    assert "12 starts" in said(tab, "#summary")
    assert "92 %" in said(tab, "#slowest")
