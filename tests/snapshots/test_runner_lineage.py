"""What two cold starts of one program have in common: with CRIU nearly all of their pages, because nothing in them is left to chance."""

import os

import pytest

from imagefs.errors import ProgramError
from snapshotstore.repository import PushReport
from snapshotstore.runner.entry import Entry
from tests.snapshots.engines import engine
from tests.snapshots.services import Place
from tests.system.world import require

SERVICE = """
from snapshotstore import App, enter, method

app = App("lineage")

@app.cls(image="python:1", enable_memory_snapshot=True{more})
class Service:
    @enter(snap=True)
    def load(self):
        import argparse, asyncio, concurrent.futures, decimal, email, http.client, json, logging, sqlite3, xml.dom
        self.table = {{str(number): [number] for number in range(100_000)}}
    @method()
    def ask(self): return len(self.table)
"""


@pytest.fixture
def engine_name(monkeypatch: pytest.MonkeyPatch) -> str:
    """CRIU alone: gVisor lays out memory at random, whatever it is told."""
    require("root", "runs the engines")
    monkeypatch.setenv("PATH", f"{engine('criu', 'check').parent}{os.pathsep}{os.environ['PATH']}")
    return "criu"


def _again(place: Place, service: Entry) -> PushReport:
    runner = place.runner(fresh=True)
    assert runner.call(service, "ask", [], {}).result == 100_000
    assert runner.close() == []
    place.runners.remove(runner)
    return runner.pushed[0]


def _share(report: PushReport) -> float:
    return report.stored_bytes / report.memory_bytes


def test_two_cold_starts_share_their_pages(service_place: Place) -> None:
    service = service_place.entry(SERVICE.format(more=""))
    assert _share(_again(service_place, service)) > 0.5
    assert _share(_again(service_place, service)) < 0.05


def test_without_a_fixed_layout_they_do_not(service_place: Place) -> None:
    service = service_place.entry(SERVICE.format(more=", fixed_layout=False"))
    _again(service_place, service)
    assert _share(_again(service_place, service)) > 0.3


MODULES = (
    "argparse",
    "asyncio",
    "concurrent.futures",
    "decimal",
    "email",
    "http.client",
    "json",
    "logging",
    "sqlite3",
    "tarfile",
    "xml.dom",
)
CHANGED = """
from snapshotstore import App, enter, method

app = App("changed")

@app.cls(image="python:1", enable_memory_snapshot=True, preload={preload})
class Service:
    @enter(snap=True)
    def load(self):
        import importlib
        for name in {modules}: importlib.import_module(name)
    @method()
    def ask(self): return 100_000
{more}
"""


def test_what_was_imported_before_the_service_lies_where_it_lay_when_a_line_changes(service_place: Place) -> None:
    shares = []
    for more in ("", "CHANGED = 1"):
        service = service_place.entry(CHANGED.format(preload=MODULES, modules=MODULES, more=more))
        shares.append(_share(_again(service_place, service)))
    assert shares[0] > 0.5
    # Imported by the service itself, they take 0.6: they come to lie elsewhere, because the text that was compiled before them is longer.
    assert shares[1] < 0.15


def test_what_cannot_be_imported_before_it_is_named(service_place: Place) -> None:
    service = service_place.entry(CHANGED.format(preload=("json", "no_such_module"), modules=(), more=""))
    runner = service_place.runner(fresh=True)
    with pytest.raises(ProgramError, match="no_such_module"):
        runner.call(service, "ask", [], {})
