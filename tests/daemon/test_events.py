"""docs/logs.md names every event that the code can log, with its level and its fields, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/logs.md"
METHODS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error", "critical": "critical"}
LOGGERS = {"log", "self._log", "self.log"}
"""A logger is called so wherever it is used. ``_log`` is the logging of a library: the standard library's, and no event."""

ROW = re.compile(r"\| `(?P<event>[a-z_]+)` \| (?P<level>[a-z]+) \| (?:(?P<fields>[^|]+) )?\| (?P<meaning>[^|]+) \|")


def calls() -> Iterator[tuple[str, str, set[str]]]:
    for path in (ROOT / "imagefs").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                if ast.unparse(node.func.value) not in LOGGERS:
                    continue
                where = f"{path}:{node.lineno}"
                assert len(node.args) == 1, where
                assert isinstance(node.args[0], ast.Constant), f"{where}: an event is a name"
                event = node.args[0].value
                assert isinstance(event, str), where
                assert re.fullmatch("[a-z_]+", event), where
                names = {keyword.arg for keyword in node.keywords}
                assert None not in names, f"{where}: fields are named"
                names |= {"exception"} if node.func.attr == "exception" else set()
                yield event, METHODS[node.func.attr], {str(name) for name in names}


def logged() -> dict[str, tuple[set[str], set[str]]]:
    found: dict[str, tuple[set[str], set[str]]] = {}
    for event, level, names in calls():
        levels, fields = found.setdefault(event, (set(), set()))
        levels.add(level)
        fields |= names
    return found


def rows() -> list[re.Match[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    matches = [ROW.fullmatch(line) for line in lines]
    assert None not in matches, lines[matches.index(None)]
    return [match for match in matches if match is not None]


def test_the_page_has_every_event_with_its_level_and_fields() -> None:
    page = {row["event"]: ({row["level"]}, set(re.findall(r"`([a-z_]+)`", row["fields"] or ""))) for row in rows()}
    code = logged()
    assert len(code) > 40, "the search finds nothing any more"
    assert sorted(page) == sorted(code)
    for event, found in code.items():
        assert page[event] == found, event


def test_each_event_has_one_row_and_its_fields_are_in_order() -> None:
    events = [row["event"] for row in rows()]
    assert len(events) == len(set(events))
    for row in rows():
        fields = re.findall(r"`([a-z_]+)`", row["fields"] or "")
        assert fields == sorted(fields), row["event"]
        assert ", ".join(f"`{field}`" for field in fields) == (row["fields"] or ""), row["event"]
