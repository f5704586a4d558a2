"""The mask: what upper layers hide is not stored, what can be seen always is in the end."""

import copy
import stat
import time

import pytest
from hypothesis import HealthCheck, given, settings

from imagefs.convert.entry import Content, Entry, Kind
from imagefs.convert.flatten import flatten, missing_content
from imagefs.convert.mask import MaskFilter
from imagefs.errors import SourceError
from imagefs.format.tree import Inode
from tests.convert import model


def mask_of(*entries: Entry) -> MaskFilter:
    mask = MaskFilter()
    mask.begin_layer(1)
    for entry in entries:
        mask.add(entry)
    mask.begin_layer(0)
    return mask


def test_nothing_is_hidden_at_first() -> None:
    mask = MaskFilter()
    assert not mask.hides(b"a/b")
    assert not mask.hides(b"")


@pytest.mark.parametrize("kind", [Kind.FILE, Kind.SYMLINK, Kind.HARDLINK, Kind.FIFO, Kind.CHAR, Kind.BLOCK, Kind.WHITEOUT])
def test_what_replaces_hides_itself_and_all_below(kind: Kind) -> None:
    mask = mask_of(Entry(b"a/b", kind, link=b"elsewhere"))
    assert mask.hides(b"a/b")
    assert mask.hides(b"a/b", Kind.DIR)
    assert mask.hides(b"a/b/c/d")
    assert not mask.hides(b"a")
    assert not mask.hides(b"a/bc")
    assert not mask.hides(b"a/c")


def test_a_directory_hides_only_a_file_in_its_place() -> None:
    mask = mask_of(Entry(b"a", Kind.DIR))
    assert mask.hides(b"a")
    assert not mask.hides(b"a", Kind.DIR)
    assert not mask.hides(b"a/b")


def test_an_opaque_directory_hides_what_is_below() -> None:
    mask = mask_of(Entry(b"a", Kind.OPAQUE))
    assert mask.hides(b"a/b")
    assert mask.hides(b"a/b/c")
    assert not mask.hides(b"a")
    assert not mask.hides(b"b")
    assert mask_of(Entry(b"", Kind.OPAQUE)).hides(b"x")


def test_the_target_of_a_hard_link_is_never_hidden() -> None:
    mask = mask_of(Entry(b"new", Kind.HARDLINK, link=b"d/old"), Entry(b"d", Kind.WHITEOUT))
    assert not mask.hides(b"d/old")
    assert mask.hides(b"d/other")


def test_layers_add_up() -> None:
    mask = mask_of(Entry(b"a/x", Kind.FILE))
    assert not mask.hides(b"a/y")
    mask.add(Entry(b"a", Kind.WHITEOUT))
    assert mask.hides(b"a/y")


def test_deep_paths_are_cheap() -> None:
    mask = mask_of(Entry(b"z", Kind.WHITEOUT))
    deep = b"/".join([b"d"] * 2000)
    start = time.process_time()
    for index in range(1000):
        assert not mask.hides(deep + b"/%d" % index)
    assert time.process_time() - start < 1


def fields(root: Inode) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    stack = [(b"", root)]
    while stack:
        path, inode = stack.pop()
        rows.append((path, inode.mode, inode.uid, inode.inline, inode.target, inode.size))
        stack += [(path + b"/" + name, child) for name, child in (inode.children or {}).items()]
    return sorted(rows, key=lambda row: bytes(row[0]))  # type: ignore[call-overload]


def read_top_down(layers: list[list[Entry]]) -> tuple[list[list[Entry]], dict[int, Content | None]]:
    """Return the layers as a conversion has them that skipped what is hidden, and the content of each entry."""
    mask = MaskFilter()
    result: list[list[Entry]] = []
    contents = {}
    for index in reversed(range(len(layers))):
        entries = [copy.copy(entry) for entry in layers[index]]
        for entry in entries:
            contents[id(entry)] = entry.content
            if entry.kind is Kind.FILE and mask.hides(entry.path):
                entry.content = None
        mask.begin_layer(index)
        for entry in entries:
            mask.add(entry)
        result.insert(0, entries)
    return result, contents


@given(model.LAYERS)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_was_skipped_and_can_be_seen_is_found(layers: list[list[Entry]]) -> None:
    try:
        whole = flatten(layers)
    except SourceError:
        return
    read, contents = read_top_down(layers)
    missing = missing_content(flatten(read))
    linked = any(entry.kind in (Kind.SYMLINK, Kind.HARDLINK) for layer in layers for entry in layer)
    assert linked or not missing
    for entry in missing:
        entry.content = contents[id(entry)]
    root = flatten(read)
    assert missing_content(root) == []
    assert fields(root) == fields(whole)


@given(model.LAYERS)
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_without_links_only_what_can_be_seen_is_stored(layers: list[list[Entry]]) -> None:
    """But for an entry that a later one of its own layer replaces: that is not known while it is read."""
    links = (Kind.SYMLINK, Kind.HARDLINK)
    plain = [list({(entry.path, entry.kind): entry for entry in layer if entry.kind not in links}.values()) for layer in layers]
    read, _ = read_top_down(plain)
    try:
        seen = files(flatten(read))
    except SourceError:
        return
    for layer in read:
        alone = files(flatten([layer]))
        for entry in layer:
            if entry.kind is Kind.FILE and entry.content is not None and entry.path in alone:
                assert entry.path in seen


def files(root: Inode) -> set[bytes]:
    return {bytes(row[0])[1:] for row in fields(root) if stat.S_ISREG(row[1])}  # type: ignore[call-overload, arg-type]
