"""``imagefs diff``: what it tells of two images is what other eyes see in the directories that they were made from."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from imagefs import errors
from imagefs.store import refs
from imagefs.store.images import get_manifest, put_manifest
from imagefs.store.opening import open_store
from imagefs_cli.main import main
from tests.system.compare import snapshot
from tests.system.test_compare import CHANGES
from tests.system.trees import full_tree
from tests.system.world import require, tool

_NAMES: Final = {"uid": "owner", "gid": "owner", "mtime_ns": "mtime", "rdev": "device", "kind": "type"}

Diff = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("root", "owners and devices")
    return full_tree(tmp_path_factory.mktemp("diff") / "tree")


@pytest.fixture(scope="module")
def store(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the image ``a`` of the tree."""
    place = str(tmp_path_factory.mktemp("diff-store") / "store")
    assert main(["convert", f"dir:{tree}", "a", "--store", place, "--json"]) == 0
    return place


@pytest.fixture
def diff(store: str, capsys: pytest.CaptureFixture[str]) -> Diff:
    def run(one: str, other: str) -> tuple[int, Any]:
        capsys.readouterr()
        status = main(["diff", one, other, "--store", store, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_told_and_nothing_else(name: str, tree: Path, store: str, diff: Diff, tmp_path: Path) -> None:
    require("cp")
    change, field = CHANGES[name]
    tool("cp", "--archive", "--sparse=always", tree, tmp_path / "tree")
    before = snapshot(tmp_path / "tree")
    change(tmp_path / "tree")
    after = snapshot(tmp_path / "tree")
    assert main(["convert", f"dir:{tmp_path / 'tree'}", "b", "--store", store, "--json"]) == 0
    status, told = diff("a", "b")
    assert status == 1
    assert told["different"] is True
    changes = {os.fsencode(row["path"])[1:]: row for row in told["changes"]}
    assert changes.keys() == {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    whats = {row["change"] for row in changes.values()}
    match field:
        case "only on the left":
            assert whats == {"removed", "changed"}  # the directory's time
        case "only on the right":
            assert whats == {"added", "changed"}
        case "only on the":
            assert whats >= {"added", "removed"}
        case _:
            assert any(_NAMES.get(field, field) in row["fields"] for row in changes.values())
    assert told["added"] + told["removed"] + told["changed"] == len(changes)
    backwards = diff("b", "a")[1]
    swap = {"added": "removed", "removed": "added", "changed": "changed"}
    assert [(row["path"], swap[row["change"]]) for row in backwards["changes"]] == [(row["path"], row["change"]) for row in told["changes"]]


def test_no_difference(tree: Path, store: str, diff: Diff, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = diff("a", "a:latest")
    assert (status, told["changes"], told["different"], told["settings"]) == (0, [], False, {})
    assert main(["diff", "a", "a", "--store", store]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "no difference\n")


def test_it_is_said_to_people_line_by_line(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
        (place / "kept").write_bytes(b"kept")
        (place / "kept").chmod(0o644)
        (place / "gone" if place == places[0] else place / "new").write_bytes(b"")
    (places[1] / "kept").chmod(0o600)
    (places[1] / "kept").write_bytes(b"KEPT")
    for place in places:
        for path in (*place.iterdir(), place):
            os.utime(path, ns=(0, 1_700_000_000_000_000_001))
        assert main(["convert", f"dir:{place}", place.name, "--store", store, "--json"]) == 0
    os.utime(places[1] / "kept", ns=(0, -1))
    assert main(["convert", f"dir:{places[1]}", "two", "--store", store, "--json"]) == 0
    capsys.readouterr()
    assert main(["diff", "one", "two", "--store", store]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "removed  /gone",
        "changed  /kept  mode 0644 -> 0600  mtime 2023-11-14T22:13:20.000000001Z -> 1969-12-31T23:59:59.999999999Z  content",
        "added    /new",
    ]
    assert said.err == "1 removed, 1 changed, 1 added\n"


def test_what_a_container_is_run_with_counts_and_how_it_is_stored_does_not(store: str, diff: Diff) -> None:
    opened = open_store(store)
    name = refs.resolve(opened, "a")
    manifest = get_manifest(opened, name)

    def variant(ref: str, **fields: Any) -> None:
        refs.publish(opened, refs.Ref.parse(ref), put_manifest(opened, msgspec.structs.replace(manifest, **fields))[0])

    variant("stored", annotations={"x": "y"}, config=manifest.config | {"created": "today", "history": []})
    variant("set", config=manifest.config | {"config": {"Env": ["A=1"]}})
    opened.close()
    assert diff("a", "stored")[0] == 0
    status, told = diff("a", "set")
    assert (status, told["settings"], told["changes"]) == (1, {"Env": [None, ["A=1"]]}, [])


def test_an_image_that_is_not_there_or_damaged_is_an_error_and_no_difference(store: str, diff: Diff, tmp_path: Path) -> None:
    assert diff("a", "none")[0] == errors.NotFoundError.exit_code
    (tmp_path / "source").mkdir()
    assert main(["convert", f"dir:{tmp_path}/source", "damaged", "--store", store, "--json"]) == 0
    opened = open_store(store)
    tree_name = get_manifest(opened, refs.resolve(opened, "damaged")).tree.digest
    opened.close()
    (Path(store) / "blobs" / tree_name).chmod(0o644)
    (Path(store) / "blobs" / tree_name).write_bytes(b"damaged")
    status, told = diff("a", "damaged")
    assert status == errors.IntegrityError.exit_code
    assert told["error"]["type"] == "IntegrityError"
