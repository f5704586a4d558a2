"""The table of metrics: all that is counted is in it, and JSON, Prometheus's text and the page say what it says."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from imagefs.cache.counters import ReadCounters
from imagefs.cache.disk_commits import DiskCounters
from imagefs.cache.disk_open import OpenedTier
from imagefs.cache.disk_place import CachePlace
from imagefs.cache.link import Link, LinkCounters
from imagefs.cache.ram import RamCache
from imagefs.daemon import client, metrics
from imagefs.daemon.metrics import COUNTER, METRICS, Sources, stats
from imagefs.daemon.prometheus import exposition
from imagefs.errors import DaemonError, UsageError
from imagefs.fuse.forest import Forest
from imagefs.fuse.guard import Requests
from imagefs.mount.table import MountRecord, MountTable
from imagefs_cli.main import main
from tests.cache.test_fetcher import Log
from tests.daemon.place import Place

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
BINARY = Path(sys.executable).parent / "imagefs"

CONTRACT = {
    *("fuse_requests", "bytes_read", "store_gets", "store_bytes", "prefetch_bytes", "prefetch_used_bytes", "verify_failures"),
    *("hedged_gets", "objects_complete", "ssd_bytes", "worker_restarts", "rss_bytes"),
}
"""The keys that scripts outside this repository use."""

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (-?[0-9.e+-]+)')


class Nowhere:
    """A store that nobody asks."""

    def get(self, key: str, byte_range: object = None) -> bytes:
        raise AssertionError


def sources(tmp_path: Path, tier: OpenedTier | None = None) -> Sources:
    link = LinkCounters()
    state = Link(Nowhere(), link, Log(), deadline=5, clock=time.monotonic).state
    disk = None if tier is None else tier.tier
    table = MountTable(tmp_path / "mounts.json")
    return Sources(ReadCounters(), link, RamCache(7 << 20), disk, Requests(Log()), Forest(), table, state)


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[OpenedTier]:
    opened = OpenedTier(CachePlace(tmp_path / "cache"), Log(), limit=1 << 30, floor=1 << 20)
    yield opened
    opened.close()


def samples(text: str) -> dict[str, float]:
    """Parse the text format strictly: HELP, TYPE, samples of one metric together, each sample once."""
    found: dict[str, float] = {}
    known: set[str] = set()
    assert text.endswith("\n")
    lines = iter(text.splitlines())
    name = kind = ""
    for line in lines:
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in known
            known.add(name)
            head, kind = next(lines).rsplit(" ", 1)
            assert head == f"# TYPE {name}"
            assert kind in {"counter", "gauge"}
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        assert match[1] == name
        sample = line.rpartition(" ")[0]
        assert sample not in found
        found[sample] = float(match[3])
    return found


def test_keys_and_names_are_each_one_metrics_own_and_follow_the_conventions() -> None:
    assert len({metric.key for metric in METRICS}) == len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"imagefs_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == COUNTER), metric.name
        base = metric.name.removesuffix("_total")
        for unit in ("bytes", "seconds"):
            assert base.endswith(f"_{unit}") == (metric.unit == unit), metric.name
        assert "|" not in metric.meaning


def test_the_keys_that_scripts_use_are_there() -> None:
    assert {metric.key for metric in METRICS} >= CONTRACT


def test_every_key_of_stats_is_in_the_table_with_and_without_an_ssd_tier(tmp_path: Path, tier: OpenedTier) -> None:
    keys = [metric.key for metric in METRICS]
    for some in (sources(tmp_path), sources(tmp_path, tier)):
        figures = stats(some)
        assert list(figures) == keys
        assert json.loads(json.dumps(figures)) == figures
        for metric in METRICS:
            assert isinstance(figures[metric.key], dict if metric.label else list if metric.key == "mounts" else int | float)


def test_all_that_is_counted_is_shown(tmp_path: Path, tier: OpenedTier) -> None:
    some = sources(tmp_path, tier)
    number = 1_000_000
    expected = {}
    for counters in (some.counters, some.link, tier.tier.counters):
        for field in fields(counters):
            number += 1000
            setattr(counters, field.name, number)
            expected[field.name] = number
    # This one the link works out anew: how many threads hang now.
    del expected["abandoned_threads"]
    some.requests.failed, some.requests.internal_errors = 3, 4
    some.requests.counts.update(read=5, lookup=6)
    figures = stats(some)
    shown = {
        value
        for figure in figures.values()
        for value in (figure.values() if isinstance(figure, dict) else [figure] if isinstance(figure, int | float) else [])
    }
    assert isinstance(some.counters, ReadCounters)
    assert isinstance(tier.tier.counters, DiskCounters)
    for name, value in expected.items():
        assert (value / 1000 if name.endswith("_ms") else value) in shown, name
    assert figures["fuse_requests"] == {"lookup": 6, "read": 5}
    assert (figures["failed_requests"], figures["internal_errors"]) == (3, 4)
    assert (figures["ram_limit_bytes"], figures["ssd_limit_bytes"], figures["ssd_floor_bytes"]) == (7 << 20, 1 << 30, 1 << 20)


def test_the_links_state_is_shown(tmp_path: Path) -> None:
    some = sources(tmp_path)
    figures = stats(some)
    assert (figures["breaker_open"], figures["gets_in_flight"], figures["gets_waiting"], figures["ssd_present"]) == (0, 0, 0, 0)
    assert figures["get_concurrency"] == some.link_state()["concurrency"]
    state = {**some.link_state(), "breaker": "open", "waiting": 9, "demand_waiting": 2, "in_flight": 8, "prefetch_in_flight": 1}
    opened = Sources(some.counters, some.link, some.ram, None, some.requests, some.forest, some.table, lambda: state)
    figures = stats(opened)
    assert [figures[key] for key in ("breaker_open", "gets_waiting", "demand_gets_waiting")] == [1, 9, 2]
    assert [figures[key] for key in ("gets_in_flight", "prefetch_gets_in_flight")] == [8, 1]


def test_prometheus_is_told_the_same(tmp_path: Path, tier: OpenedTier) -> None:
    some = sources(tmp_path, tier)
    some.requests.counts.update(read=5, lookup=6)
    some.counters.ssd_bytes = 1 << 40
    some.link.demand_wait_ms = 1250
    some.table.add(MountRecord("/a", "0" * 64, "a:1", 1, "fuse", 0.0))
    figures = stats(some)
    found = samples(exposition(figures))
    expected: dict[str, Any] = {}
    for metric in METRICS:
        figure: Any = figures[metric.key]
        if metric.label:
            expected |= {f'{metric.name}{{{metric.label}="{value}"}}': number for value, number in figure.items()}
        else:
            expected[metric.name] = len(figure) if isinstance(figure, list) else figure
    assert found == expected
    assert found['imagefs_read_bytes_total{tier="ssd"}'] == 1 << 40
    assert found['imagefs_fuse_requests_total{op="read"}'] == 5
    assert found["imagefs_store_demand_wait_seconds_total"] == 1.25
    assert found["imagefs_mounts"] == 1


def test_labels_are_escaped_and_stand_beside_the_metrics_own(tmp_path: Path) -> None:
    text = exposition({"bytes_read": {'a"\\\n': 1}, "rss_bytes": 2}, {"pool": 'x\\"y\n'})
    assert samples(text) == {
        'imagefs_read_bytes_total{pool="x\\\\\\"y\\n",tier="a\\"\\\\\\n"}': 1,
        'imagefs_resident_memory_bytes{pool="x\\\\\\"y\\n"}': 2,
    }


def test_figures_of_another_version_are_shown_as_far_as_they_are_known() -> None:
    assert samples(exposition({"store_gets": 3, "of_tomorrow": 4})) == {"imagefs_store_gets_total": 3}


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text()
    assert metrics.renew(page) == page, "run `python -m imagefs.daemon.metrics docs/metrics.md`"
    for name in re.findall(r"imagefs_[a-z_]+", page):
        assert name in {metric.name for metric in METRICS}


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="table"):
        metrics.renew("# Metrics\n")


def test_the_exposition_loads_none_of_the_tiers() -> None:
    script = "import sys, imagefs.daemon.prometheus as it; it.exposition({}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert not set(done.stdout.split()) & {"trio", "pyfuse3", "lmdb", "zstandard", "msgspec", "structlog", "imagefs.cache.disk"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prometheus", "--json"],
        ["--label", "a=b"],
        *(["--prometheus", "--label", text] for text in ("a", "=b", "1a=b", "__a=b", "tier=x", "op=x", "a-b=c", "a=\x1b")),
    ],
)
def test_formats_and_labels_that_cannot_be_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", *arguments]) == UsageError.exit_code
    said = capsys.readouterr()
    assert "imagefs_" not in said.out
    assert "label" in said.err + said.out or "formats" in said.err + said.out


def test_without_a_daemon_nothing_is_printed(tmp_path: Path) -> None:
    place = [f"--{name}={tmp_path}/{name}" for name in ("store", "cache", "runtime")]
    done = subprocess.run([BINARY, "stats", "--prometheus", *place], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (DaemonError.exit_code, "")


def test_a_daemon_gives_them(place: Place) -> None:
    maker = place.maker()
    maker.file("file", b"content" * 1000)
    maker.publish()
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test")
    assert (point / "file").read_bytes() == b"content" * 1000
    config = place.config
    where = ["--store", config.store, "--cache", str(config.cache), "--runtime", str(config.runtime)]
    command = [str(BINARY), "stats", *where, "--prometheus", "--label", "pool=a b"]
    found = samples(subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout)
    assert found['imagefs_read_bytes_total{pool="a b",tier="store"}'] == 7000
    assert found['imagefs_mounts{pool="a b"}'] == found['imagefs_ssd_present{pool="a b"}'] == 1
    assert found['imagefs_store_gets_total{pool="a b"}'] > 0
    assert list(client.stats(config)) == [metric.key for metric in METRICS]
    client.umount(config, point)
