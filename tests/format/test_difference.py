"""How two trees differ: told in full, and nothing told that is the same; compared with a dictionary of what each path is."""

import os
import stat
import tracemalloc
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, IntegrityError
from imagefs.format.difference import ADDED, CHANGED, REMOVED, Change, differences
from imagefs.format.erofs_reader import Tree
from imagefs.format.erofs_writer import write_tree
from imagefs.format.tree import Inode
from tests.format.inode_strategies import Row, describe, inode_trees

FILE, DIRECTORY, LINK, CHAR = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR


def tree(root: Inode) -> Tree:
    return Tree(bytes(write_tree(root)))


def folder(**children: Inode) -> Inode:
    return Inode(DIRECTORY | 0o755, children={name.encode(): child for name, child in children.items()})


def file(content: bytes = b"x", **fields: Any) -> Inode:
    return Inode(FILE | fields.pop("mode", 0o644), inline=content, size=len(content), **fields)


def large(name: bytes, size: int = 1000, **fields: Any) -> Inode:
    return Inode(FILE | fields.pop("mode", 0o644), object=digest_of(name), size=size, **fields)


def compare(one: Inode, other: Inode) -> list[Change]:
    return list(differences(tree(one), tree(other)))


# -- what is told -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one, other, fields",
    [
        (file(), file(mode=0o755), {"mode": (0o644, 0o755)}),
        (file(), file(mode=0o4644), {"mode": (0o644, 0o4644)}),
        (file(), file(uid=1, gid=2), {"owner": ((0, 0), (1, 2))}),
        (file(), file(mtime_ns=-1), {"mtime": (0, -1)}),
        (file(b"x"), file(b"y"), {"content": (digest_of(b"x").hex(), digest_of(b"y").hex())}),
        (file(b"x"), file(b"xx"), {"size": (1, 2), "content": (digest_of(b"x").hex(), digest_of(b"xx").hex())}),
        (large(b"a"), large(b"b"), {"content": (digest_of(b"a").hex(), digest_of(b"b").hex())}),
        (large(b"a"), large(b"a", mode=0o600), {"mode": (0o644, 0o600)}),
        (large(b"xy", 2), file(b"xy"), {}),
        (large(b"xy", 2), file(b"xz"), {"content": (digest_of(b"xy").hex(), digest_of(b"xz").hex())}),
        (Inode(LINK | 0o777, target=b"a"), Inode(LINK | 0o777, target=b"b"), {"target": (b"a", b"b")}),
        (Inode(CHAR | 0o600, rdev=os.makedev(1, 3)), Inode(CHAR | 0o600, rdev=os.makedev(1, 5)), {"device": ((1, 3), (1, 5))}),
        (file(), Inode(LINK | 0o644, target=b"x"), {"type": ("file", "symlink")}),
        (file(), Inode(LINK | 0o777, target=b"x"), {"type": ("file", "symlink"), "mode": (0o644, 0o777)}),
        (
            file(xattrs={b"user.a": b"1", b"user.b": b"2", b"user.c": b"3"}),
            file(xattrs={b"user.b": b"2", b"user.c": b"4", b"user.d": b""}),
            {"xattrs": ([b"user.a", b"user.c"], [b"user.c", b"user.d"])},
        ),
        (large(b"a", xattrs={b"user.a": b"1"}), large(b"a"), {"xattrs": ([b"user.a"], [])}),
        (folder(), Inode(DIRECTORY | 0o700, children={}), {"mode": (0o755, 0o700)}),
    ],
)
def test_each_field(one: Inode, other: Inode, fields: dict[str, tuple[object, object]]) -> None:
    expected = [Change(b"/x", CHANGED, fields)] if fields else []
    assert compare(folder(x=one), folder(x=other)) == expected
    backwards = {name: (after, before) for name, (before, after) in fields.items()}
    assert compare(folder(x=other), folder(x=one)) == ([Change(b"/x", CHANGED, backwards)] if fields else [])


def test_the_root_is_a_path_too() -> None:
    other = folder()
    other.uid = 7
    assert compare(folder(), other) == [Change(b"/", CHANGED, {"owner": ((0, 0), (7, 0))})]


def test_what_is_below_a_directory_that_came_or_went_or_became_a_file_is_told_too() -> None:
    one = folder(a=folder(b=file(), c=folder(d=file())), z=file())
    other = folder(a=file(mode=0o755), y=folder(x=file()))
    assert compare(one, other) == [
        Change(b"/a", CHANGED, {"type": ("directory", "file")}),
        Change(b"/a/b", REMOVED, {}),
        Change(b"/a/c", REMOVED, {}),
        Change(b"/a/c/d", REMOVED, {}),
        Change(b"/y", ADDED, {}),
        Change(b"/y/x", ADDED, {}),
        Change(b"/z", REMOVED, {}),
    ]


def test_names_of_one_file() -> None:
    """Which names are the same file is compared as what it is: by the file's first name, and by how many there are."""

    def names(*groups: str) -> Inode:
        return folder(**{name: each for group in groups for each in [large(b"same")] for name in group})

    assert compare(names("abc"), names("abc")) == []
    assert compare(names("ab", "cd"), names("ab", "cd")) == []
    assert [(c.path, c.fields) for c in compare(names("ab", "cd"), names("ac", "bd"))] == [
        (b"/b", {"links": (2, 2)}),
        (b"/c", {"links": (2, 2)}),
        (b"/d", {"links": (2, 2)}),
    ]
    assert [(c.path, c.what, c.fields) for c in compare(names("ab"), names("a", "b"))] == [
        (b"/a", CHANGED, {"links": (2, 1)}),
        (b"/b", CHANGED, {"links": (2, 1)}),
    ]
    assert [(c.path, c.what) for c in compare(names("abc"), names("ab"))] == [(b"/a", CHANGED), (b"/b", CHANGED), (b"/c", REMOVED)]
    assert [(c.path, c.what) for c in compare(names("bc"), names("abc"))] == [(b"/a", ADDED), (b"/b", CHANGED), (b"/c", CHANGED)]


# -- compared with a dictionary ---------------------------------------------------------------------------------------------------------

Known = dict[bytes, Row]


def known(root: Inode) -> Known:
    """What each path is, but for directories' sizes and links; content by its digest."""
    found = {}
    for path, row in describe(root).items():
        is_folder = stat.S_ISDIR(row.mode)
        content = row.object or (None if row.inline is None else digest_of(row.inline))
        found[path or b"/"] = replace(
            row,
            nlink=0 if is_folder else row.nlink,
            size=0 if is_folder else row.size,
            links=frozenset() if is_folder else row.links,
            inline=None,
            object=content,
        )
    return found


def expected(one: Known, other: Known) -> dict[bytes, str]:
    found = {path: ADDED if path not in one else REMOVED for path in one.keys() ^ other.keys()}
    return found | {path: CHANGED for path in one.keys() & other.keys() if one[path] != other[path]}


@st.composite
def edits(draw: st.DrawFn, root: Inode) -> Inode:
    """A copy of a tree with a few things done to it."""
    made = deepcopy(root)
    for _ in range(draw(st.integers(0, 4))):
        every = [made]
        for inode in every:
            every += (inode.children or {}).values()
        folders = [inode for inode in every if inode.children is not None]
        target = draw(st.sampled_from(folders))
        assert target.children is not None
        match draw(st.sampled_from(["remove", "add", "mode", "link", "xattr"])):
            case "remove" if target.children:
                del target.children[draw(st.sampled_from(sorted(target.children)))]
            case "add":
                target.children[draw(st.binary(min_size=1, max_size=3).filter(lambda n: not {*n} & {0, 47} and n not in {b".", b".."}))] = (
                    file()
                )
            case "mode":
                draw(st.sampled_from(every)).mode ^= 0o111
            case "link":
                others = [inode for inode in every if inode.children is None]
                if others:
                    target.children[b"linked"] = draw(st.sampled_from(others))
            case _:
                chosen = draw(st.sampled_from(every))
                chosen.xattrs = (chosen.xattrs or {}) | {b"user.edit": b"1"}
    return made


@settings(max_examples=60, deadline=None)
@given(inode_trees(), st.data())
def test_as_two_dictionaries_differ(root: Inode, data: st.DataObject) -> None:
    other = data.draw(edits(root))
    one, two = known(root), known(other)
    found = compare(root, other)
    told = {change.path: change.what for change in found}
    assert len(told) == len(found)
    right = expected(one, two)
    # Of names that are one file, those that show that a group differs are told, which need not be all: never one that does not.
    only_names = {
        path for path in one.keys() & two.keys() if one[path] != two[path] and one[path] == replace(two[path], links=one[path].links)
    }
    assert told.items() <= right.items()
    assert right.items() - told.items() <= {(path, CHANGED) for path in only_names}
    if right:
        assert told
    assert [change.path for change in found if change.path != b"/"] == sorted(
        (change.path for change in found if change.path != b"/"), key=lambda path: path.split(b"/")
    )


@settings(deadline=None)
@given(inode_trees())
def test_a_tree_does_not_differ_from_itself(root: Inode) -> None:
    assert compare(root, deepcopy(root)) == []


# -- bad trees, large trees -------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(inode_trees(), st.data())
def test_a_tree_that_was_touched_gives_errors_and_nothing_worse(root: Inode, data: st.DataObject) -> None:
    raw = bytes(write_tree(root))
    touched = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        # Behind the superblock, whose checksum would end it at once.
        touched[data.draw(st.integers(1152, len(touched) - 1))] = data.draw(st.integers(0, 255))
    body = bytes(touched)
    body = body[:1028] + _checksum(body) + body[1032:]
    for pair in ((raw, body), (body, raw), (body, body)):
        try:
            for _ in differences(*map(Tree, pair)):
                pass
        except ImageFSError:
            continue


def _checksum(image: bytes) -> bytes:
    from imagefs.format.erofs import superblock_checksum  # noqa: PLC0415 # beside its only use

    return superblock_checksum(image[:4096]).to_bytes(4, "little")


def test_a_directory_that_leads_back_ends() -> None:
    root = folder(a=folder(b=file()))
    raw = bytearray(write_tree(root))
    opened = Tree(bytes(raw))
    inner = opened.lookup(opened.root, b"a")
    assert inner is not None
    child = opened.lookup(inner, b"b")
    assert child is not None
    # The entry b of /a becomes /a itself.
    at = bytes(raw).rindex(child.to_bytes(8, "little"))
    raw[at : at + 8] = inner.to_bytes(8, "little")
    raw[1028:1032] = _checksum(bytes(raw))
    with pytest.raises(IntegrityError, match="met twice"):
        list(differences(Tree(bytes(raw)), Tree(bytes(raw))))


def test_names_out_of_order_are_refused() -> None:
    raw = bytes(write_tree(folder(aaa=file(), bbb=file())))
    swapped = raw.replace(b"aaabbb", b"bbbaaa")
    assert swapped != raw
    swapped = swapped[:1028] + _checksum(swapped) + swapped[1032:]
    with pytest.raises(IntegrityError, match="not in order"):
        list(differences(Tree(raw), Tree(swapped)))


def test_many_files_take_no_memory() -> None:
    """What is kept does not grow with the files; twenty thousand of them would be megabytes."""

    def many() -> Iterator[tuple[str, Inode]]:
        for number in range(40):
            yield f"d{number}", folder(**{f"f{index:04}": large(b"%d" % index) for index in range(500)})

    one, other = tree(folder(**dict(many()))), tree(folder(**dict(many())))
    tracemalloc.start()
    try:
        assert list(differences(one, other)) == []
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
