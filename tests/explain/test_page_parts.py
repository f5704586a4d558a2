"""What the page of ``imagefs explain`` is put together from: no browser is needed for this."""

import base64
import hashlib
import itertools
import json
import math
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from imagefs_cli import explain_page
from imagefs_cli.explain_page import MODULES, page
from tests.explain.documents import document

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tools" / "imagefs_cli" / "explain_assets"


def data_of(text: str) -> Any:
    found = re.search(r'<script id="data" type="text/plain">([^<]*)</script>', text)
    assert found
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def test_each_asset_is_in_the_page_and_after_what_it_imports() -> None:
    assert {path.name for path in ASSETS.iterdir()} == {*MODULES, "page.css", "page.html"}
    for number, name in enumerate(MODULES):
        text = (ASSETS / name).read_text()
        imports = re.findall(r'(?m)^import \{[^}]*\} from "\./([^"]+)";$', text)
        assert set(imports) <= set(MODULES[:number]), name
        assert len(imports) == text.count("\nimport ") + text.startswith("import "), name


def test_modules_share_one_scope_without_getting_into_each_others_way() -> None:
    names: dict[str, str] = {}
    for module in MODULES:
        for name in re.findall(r"(?m)^(?:export )?(?:async )?(?:const|let|class|function) (\w+)", (ASSETS / module).read_text()):
            assert name not in names, f"{name} is in {names[name]} and in {module}"
            names[name] = module


def test_what_a_module_imports_is_exported_there() -> None:
    for module in MODULES:
        for found, source in re.findall(r'(?m)^import \{([^}]*)\} from "\./([^"]+)";$', (ASSETS / module).read_text()):
            exported = (ASSETS / source).read_text()
            for name in filter(None, (one.strip() for one in found.split(","))):
                assert re.search(rf"(?m)^export (?:async )?(?:const|class|function) (?:{name}\b|\[[^\]]*\b{name}\b)", exported), (
                    module,
                    name,
                )


def test_nothing_is_made_of_text_but_text() -> None:
    """No asset parses a string as HTML or as code, and none can end the element that it stands in."""
    for path in ASSETS.iterdir():
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text), path.name
        if path.suffix != ".html":
            assert "</s" not in text.lower(), path.name
            assert "<!--" not in text, path.name


def test_the_policy_names_this_script_and_this_style() -> None:
    text = page(document(100))
    for kind, element in (("script-src", "script"), ("style-src", "style")):
        inline = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        assert len(inline) == 1
        digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)


def test_what_a_document_says_is_only_in_the_data() -> None:
    marker = "q7-marker"
    made = document(100, ref=marker, label=marker, entry=[marker], sentence=marker)
    made["files"][0]["path"] = f"/{marker}"
    text = page(made)
    assert marker not in text
    assert data_of(text)["starts"][0]["files"]["path"][0] == f"/{marker}"


def test_columns_become_the_rows_that_they_were() -> None:
    made = document(2000, profile="half")
    made["reads"].reverse()  # the order of a document is whatever it is; that of the page is that of time
    made["path"] = [[read[0], read[0] + read[1], number] for number, read in enumerate(made["reads"])][:5]
    sent = data_of(page(made))["starts"][0]

    def rows(kind: str, names: tuple[str, ...]) -> list[list[int]]:
        columns: dict[str, list[int]] = {}
        for name, values in sent[kind].items():
            column = list(itertools.accumulate(values)) if name in explain_page._FROM_ROW_BEFORE else list(values)
            if name in explain_page._FROM_COLUMN:
                column = [value + other for value, other in zip(column, columns[explain_page._FROM_COLUMN[name]], strict=True)]
            columns[name] = column
        assert tuple(columns) == names
        return [list(row) for row in zip(*columns.values(), strict=True)]

    reads = rows("reads", explain_page._READS)
    assert reads == sorted(made["reads"], key=lambda read: read[0])
    assert rows("gets", explain_page._GETS) == made["gets"]
    assert rows("opens", explain_page._OPENS) == sorted(made["opens"], key=lambda opened: opened[0])
    assert rows("touched", explain_page._TOUCHED) == made["touched"]
    assert [[begin, end, reads[read]] for begin, end, read in rows("path", explain_page._PATH)] == [
        [begin, end, made["reads"][read]] for begin, end, read in made["path"]
    ]


def test_both_sides_know_the_same_columns() -> None:
    """``data.js`` undoes what is done here: the names of the columns that are differences stand in both."""
    text = (ASSETS / "data.js").read_text()
    found = re.search(r"FROM_ROW_BEFORE = new Set\((\[[^\]]*\])\)", text)
    assert found
    assert set(json.loads(found[1])) == explain_page._FROM_ROW_BEFORE
    found = re.search(r"FROM_COLUMN = \{([^}]*)\}", text)
    assert found
    assert dict(re.findall(r'(\w+): "(\w+)"', found[1])) == explain_page._FROM_COLUMN


def test_a_page_of_many_events_is_small() -> None:
    made = document(100_000)
    assert len(page(made)) < len(json.dumps(made)) / 5


def test_the_wheel_brings_the_assets(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"imagefs_cli/explain_assets/{path.name}" for path in ASSETS.iterdir()} <= set(names)


# -- colours ------------------------------------------------------------------------------------------------------------------------------

SIGHT = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""How linear red, green and blue are seen (Machado, Oliveira and Fernandes 2009, severity 1)."""

TOLD_APART = {
    "tiers": ("store", "ssd", "ram", "tree", "back"),
    "waits": ("program", "queue", "first", "transfer", "decode", "verify", "disk", "daemon", "back"),
    "gets": ("demand", "profile", "along", "ahead", "back"),
    "differences": ("better", "worse", "faint"),
}


def colours(theme: int) -> dict[str, str]:
    text = (ASSETS / "page.css").read_text()
    found = {name: pair[theme] for name, *pair in re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\);", text)}
    return found | {name: found[other] for name, other in re.findall(r"--(\w+): var\(--(\w+)\);", text)}


def lab(colour: str, sight: str) -> tuple[float, float, float]:
    """Return a colour in CIELAB (D65), as somebody sees it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    red, green, blue = (min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear, strict=True)))) for row in SIGHT[sight])
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    a, b, c = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in (x, y, z))
    return 116 * b - 16, 500 * (a - b), 200 * (b - c)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("what", TOLD_APART)
def test_colours_are_told_apart_by_all_eyes(what: str, sight: str, theme: int) -> None:
    known = colours(theme)
    for one, other in itertools.combinations(TOLD_APART[what], 2):
        assert math.dist(lab(known[one], sight), lab(known[other], sight)) > 14, (one, other)
