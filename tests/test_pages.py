"""The pages for who runs it: what they name is there."""

import ast
import re
from pathlib import Path

import pytest

from imagefs.config import ENVIRONMENT
from imagefs_cli.group import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows(page: str) -> list[list[str]]:
    """Return the cells of all rows of all tables of a page, without heads."""
    lines = (DOCS / page).read_text().splitlines()
    found = []
    for number, line in enumerate(lines):
        is_head = number + 1 < len(lines) and lines[number + 1].startswith("|---")
        if line.startswith("| ") and not is_head:
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_difference_from_ext4_has_a_test() -> None:
    found = rows("semantics.md")
    assert len(found) > 20
    for row in found:
        named = NODE.findall(row[-1])
        assert named, f"no test: {row[0]}"
        for path, name in named:
            assert name in functions(path), f"{path}::{name}"


def test_each_test_of_the_semantics_is_named() -> None:
    path = "tests/system/test_semantics.py"
    named = {name for row in rows("semantics.md") for file, name in NODE.findall(row[-1]) if file == path}
    assert named == {name for name in functions(path) if name.startswith("test_")}


def test_each_symptom_has_a_cause_and_what_to_do() -> None:
    found = rows("troubleshooting.md")
    assert len(found) > 20
    for row in found:
        assert len(row) == 3, row
        assert all(row), row


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_and_commands_and_settings_are_there(page: str) -> None:
    text = (DOCS / page).read_text()
    for target, _, anchor in re.findall(r"\]\(([^)#:\s]*)(#([^)\s]+))?\)", text):
        other = DOCS / target if target else DOCS / page
        assert other.exists(), target
        if anchor:
            heads = re.findall(r"(?m)^#+ (.*)$", other.read_text())
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, anchor
    assert set(re.findall(r"`imagefs ([a-z]+)", text)) <= set(COMMANDS)
    assert set(re.findall(r"IMAGEFS_[A-Z_]+", text)) <= {*ENVIRONMENT.values(), "IMAGEFS_CONFIG", "IMAGEFS_REQUIRE", "IMAGEFS_DEV_CACHE"}


def test_the_index_has_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    for path in DOCS.glob("*.md"):
        name = path.name
        if name != "README.md":
            assert f"({name})" in index, name
