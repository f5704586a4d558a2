"""The page says what the command says: the same figures of the same start, though one is computed in the browser and one here."""

import json
from typing import Any

import pytest

from imagefs.format.start import decode
from imagefs_cli.explain.analysis import analyse
from tests.explain.conftest import Opened
from tests.explain.documents import SET, document

FIGURES = """(({length, sums, byFile}) => ({
  length, ...sums, touchedByFile: [...byFile.touched], pathByFile: [...byFile.path], waitByFile: [...byFile.wait],
}))(imagefsExplain.app.starts[0])"""


@pytest.mark.parametrize("name", [name for name in SET if "large" not in name])
def test_the_page_and_the_text_have_the_same_figures(opened: Opened, name: str) -> None:
    made = document(**SET[name])
    found = analyse(decode(json.dumps(made).encode()))
    path = [[step.at_us, step.at_us + step.length_us, step.read] for step in found.steps]
    shown: dict[str, Any] = opened(made | {"path": path}).run(FIGURES)
    assert shown["length"] == found.length_us
    assert shown["program"] == pytest.approx(found.program_us, abs=1)
    assert shown["phases"] == pytest.approx(list(found.path), abs=len(path) + 1)  # integers here, each rounded down
    assert shown["wait"] == found.total.wait_us
    assert shown["tiers"] == [total.bytes for total in found.tiers]
    assert shown["help"] == [total.reads for total in found.help]
    assert shown["moved"] == found.bytes.stored
    assert shown["fetched"] == found.bytes.content
    assert shown["touched"] == found.bytes.touched
    assert [kind["moved"] for kind in shown["kinds"]] == list(found.bytes.by_kind.values())
    assert shown["touchedByFile"][:-1] == [use.touched for use in found.files]
    assert shown["pathByFile"][:-1] == [use.sum.path_us for use in found.files]
    assert shown["waitByFile"][:-1] == [use.sum.wait_us for use in found.files]
