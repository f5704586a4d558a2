"""The tree's writer and reader: what was written is read back in every field, ``fsck.erofs`` agrees, and bad input is refused."""

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, LimitError, SourceError, UnsupportedError
from imagefs.format import erofs
from imagefs.format.erofs_reader import Tree
from imagefs.format.erofs_writer import write_tree
from imagefs.format.tree import Inode
from tests.format.inode_strategies import Row, describe, inode_trees, names

_GENEROUS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
_DTYPES = {stat.S_IFREG: 8, stat.S_IFDIR: 4, stat.S_IFLNK: 10, stat.S_IFCHR: 2, stat.S_IFBLK: 6, stat.S_IFIFO: 1, stat.S_IFSOCK: 12}


def directory(**children: Inode) -> Inode:
    return Inode(0o40755, children={name.encode(): child for name, child in children.items()})


def file(number: int = 0, **fields: object) -> Inode:
    return Inode(0o100644, size=1000 + number, object=digest_of(b"%d" % number), **fields)  # type: ignore[arg-type]


def read_all(tree: Tree) -> tuple[dict[bytes, Row], dict[bytes, int]]:
    """Walk a tree through the reader alone; return its rows and nids by path. Also sees that all ways to a file agree."""
    nids: dict[bytes, int] = {b"": tree.root}
    pending, parents = [b""], {b"": tree.root}
    while pending:
        path = pending.pop()
        nid = nids[path]
        seen = list(tree.readdir(nid))
        assert [name for name, *_ in seen] == sorted({name for name, *_ in seen} | {b".", b".."})
        for name, child, dtype, _ in seen:
            assert tree.lookup(nid, name) == child
            mode = tree.stat(child).mode
            assert dtype == _DTYPES[stat.S_IFMT(mode)]
            if name in {b".", b".."}:
                assert child == (nid if name == b"." else parents[path])
                continue
            nids[path + b"/" + name] = child
            if stat.S_ISDIR(mode):
                pending.append(path + b"/" + name)
                parents[path + b"/" + name] = nid
    paths: dict[int, set[bytes]] = {}
    for path, nid in nids.items():
        paths.setdefault(nid, set()).add(path)
    assert tree.inode_count == len(paths)
    return {path: _read_row(tree, nid, paths[nid]) for path, nid in nids.items()}, nids


def _read_row(tree: Tree, nid: int, paths: set[bytes]) -> Row:
    shown = tree.stat(nid)
    assert shown.nid == nid
    kind, digest = stat.S_IFMT(shown.mode), tree.object_of(nid)
    listed = tree.xattr_names(nid)
    values = {name: tree.xattr(nid, name) for name in listed}
    assert len(values) == len(listed)
    return Row(
        mode=shown.mode,
        uid=shown.uid,
        gid=shown.gid,
        mtime_ns=shown.mtime_ns,
        nlink=shown.nlink,
        rdev=shown.rdev,
        size=0 if kind == stat.S_IFDIR else shown.size,
        target=tree.readlink(nid) if kind == stat.S_IFLNK else b"",
        inline=tree.inline(nid) if kind == stat.S_IFREG and digest is None else None,
        object=digest,
        xattrs=tuple(sorted((name, value) for name, value in values.items() if value is not None)),
        links=frozenset(paths),
    )


def fsck(image: bytes | bytearray, folder: Path) -> str:
    """Return what ``fsck.erofs`` finds wrong, ``""`` for nothing. Its exit status alone does not do: a wrong checksum leaves it 0."""
    if shutil.which("fsck.erofs") is None:
        reason = "fsck.erofs is not installed (Debian: erofs-utils)"
        if os.environ.get("IMAGEFS_REQUIRE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    path = folder / "tree"
    path.write_bytes(image)
    result = subprocess.run(["fsck.erofs", str(path)], capture_output=True, text=True, timeout=60, check=False)
    output = result.stdout + result.stderr
    return output if "<E>" in output or "<W>" in output else f"exit status {result.returncode}" * bool(result.returncode)


# -- what was written is read back ----------------------------------------------------------------------------------------------------


@_GENEROUS
@given(root=inode_trees())
def test_every_field_is_read_back(root: Inode) -> None:
    rows, nids = read_all(Tree(bytes(write_tree(root))))
    assert rows == describe(root)
    assert all(nid * 32 % 4096 + 64 <= 4096 for nid in nids.values()), "an inode crosses a block"


@settings(_GENEROUS, max_examples=25)
@given(root=inode_trees())
def test_fsck_accepts_every_tree(root: Inode, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert fsck(write_tree(root), tmp_path_factory.mktemp("fsck")) == ""


def test_fsck_accepts_an_inode_that_ends_with_a_block(tmp_path: Path) -> None:
    # It reads an attribute header behind every inode, also behind the last of the image that has none.
    image = b""
    for length in range(2500, 2900, erofs.SLOT_SIZE):
        image = bytes(write_tree(directory(a=Inode(0o120777, target=b"t" * length), b=Inode(0o100644))))
        assert fsck(image, tmp_path) == ""
        last = Tree(image).lookup(Tree(image).root, b"b")
        assert last is not None
        if (last * erofs.SLOT_SIZE + erofs.INODE_SIZE) % erofs.BLOCK_SIZE == 0:
            return
    pytest.fail("no length made an inode end with its block")


def test_fsck_sees_damage(tmp_path: Path) -> None:
    image = write_tree(directory(a=file()))
    image[erofs.SUPER_OFFSET + 20] ^= 1
    assert "checksum" in fsck(image, tmp_path)
    image = write_tree(directory(a=file()))
    image[erofs.METADATA_START + erofs.INODE_SIZE] ^= 0xFF
    assert fsck(image, tmp_path) != ""


@settings(_GENEROUS, max_examples=30)
@given(root=inode_trees(), absent=names())
def test_a_name_that_is_not_there_is_not_found(root: Inode, absent: bytes) -> None:
    tree = Tree(bytes(write_tree(root)))
    if absent not in (root.children or {}):
        assert tree.lookup(tree.root, absent) is None
    assert tree.lookup(tree.root, b"") is None


@settings(_GENEROUS, max_examples=30)
@given(root=inode_trees())
def test_a_listing_goes_on_at_every_cookie(root: Inode) -> None:
    image = bytes(write_tree(root))
    tree, other = Tree(image), Tree(bytearray(image))
    whole = list(tree.readdir(tree.root))
    cookies = [cookie for *_, cookie in whole]
    assert cookies == sorted(set(cookies))
    assert 0 not in cookies
    for position, cookie in enumerate(cookies, 1):
        assert list(other.readdir(other.root, cookie)) == whole[position:]


def test_a_cookie_that_is_no_position_lists_nothing() -> None:
    tree = Tree(bytes(write_tree(directory(a=file()))))
    for cookie in (-1, 5, 500, 1 << 12, (1 << 63) - 1, -(1 << 63)):
        assert list(tree.readdir(tree.root, cookie)) == []


def test_children_lie_one_behind_the_other() -> None:
    root = directory(b=directory(x=file(1), y=file(2)), a=directory(z=file(3)), c=file(4))
    rows, nids = read_all(Tree(bytes(write_tree(root))))
    assert len(rows) == len(nids)
    assert sorted(nids, key=nids.__getitem__) == [b"", b"/a", b"/b", b"/c", b"/a/z", b"/b/x", b"/b/y"]


# -- the same inodes give the same bytes ----------------------------------------------------------------------------------------------


@settings(_GENEROUS, max_examples=30)
@given(root=inode_trees())
def test_the_order_of_insertion_does_not_matter(root: Inode) -> None:
    image = write_tree(root)
    for inode in [root, *(root.children or {}).values()]:
        inode.children = inode.children and dict(reversed(inode.children.items()))
        inode.xattrs = inode.xattrs and dict(reversed(inode.xattrs.items()))
    assert write_tree(root) == image


def test_the_bytes_of_a_tree_stay_as_they_are() -> None:
    """A tree's digest is part of an image's identity: another one here is another format, and needs a reason."""
    assert digest_of(small_image()).hex() == "61d71e07c79be4c077ec3a1cd66a88325721f1014479a3a5b9bc2557af919963"


def test_the_superblock_names_the_rest() -> None:
    """The checksum and the uuid by their definitions, not by the writer's own functions."""
    image = write_tree(directory(a=file()))
    stored = int.from_bytes(image[1028:1032], "little")
    block = bytes(image[1024:1028]) + bytes(4) + bytes(image[1032:4096])
    assert stored == google_crc32c.value(block) ^ 0xFFFF_FFFF
    uuid = bytes(image[1024 + 48 : 1024 + 64])
    without = bytearray(image)
    without[1028:1032] = bytes(4)
    without[1024 + 48 : 1024 + 64] = bytes(16)
    assert uuid == digest_of(without)[:16]
    assert not any(image[:1024])
    assert len(image) % 4096 == 0


# -- numbers and limits ---------------------------------------------------------------------------------------------------------------


def test_links_are_counted() -> None:
    twice = file(1)
    root = directory(a=twice, d=directory(b=twice, c=twice), e=directory(f=directory()))
    _, nids = read_all(tree := Tree(bytes(write_tree(root))))
    assert nids[b"/a"] == nids[b"/d/b"] == nids[b"/d/c"]
    assert [tree.stat(nids[path]).nlink for path in (b"", b"/a", b"/d", b"/e", b"/e/f")] == [4, 3, 2, 3, 2]


@pytest.mark.parametrize(
    "size, bits, count",
    [(1, 0, 1), (4096, 0, 1), (4097, 1, 1), (1 << 20, 8, 1), (1 << 43, 31, 1), ((1 << 43) + 1, 31, 2), ((1 << 63) - 1, 31, 1 << 20)],
)
def test_one_chunk_holds_a_file_where_there_are_such_chunks(size: int, bits: int, count: int) -> None:
    image = bytes(write_tree(directory(a=Inode(0o100644, size=size, object=bytes(32)), b=file())))
    tree = Tree(image)
    start = (tree.lookup(tree.root, b"a") or 0) * 32
    assert int.from_bytes(image[start + 16 : start + 20], "little") == bits
    chunks = image[start + 64 + 120 : (tree.lookup(tree.root, b"b") or 0) * 32]
    assert chunks[: 4 * count] == b"\xff" * 4 * count
    assert not any(chunks[4 * count :])
    assert (1 << 12 + bits) * count >= size


def test_a_tree_as_deep_as_paths_go() -> None:
    root = inode = directory()
    for _ in range(2048):
        inode.children = {b"d": directory()}
        inode = inode.children[b"d"]
    tree = Tree(bytes(write_tree(root)))
    nid, depth = tree.root, 0
    while (below := tree.lookup(nid, b"d")) is not None:
        nid, depth = below, depth + 1
    assert depth == 2048


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"n" * 256])
def test_names_that_cannot_be_are_refused(name: bytes) -> None:
    root = directory(top=Inode(0o40755, children={b"ok": file(), name: file()}))
    with pytest.raises(SourceError, match=r"^/top: "):
        write_tree(root)


@pytest.mark.parametrize(
    "name, value, error",
    [
        (b"os2.x", b"", UnsupportedError),
        (b"user", b"", UnsupportedError),
        (b"user.", b"", UnsupportedError),
        (b"user.a\0b", b"", UnsupportedError),
        (b"system.posix_acl_access.x", b"", UnsupportedError),
        (b"system.nfs4_acl", b"", UnsupportedError),
        (b"user." + b"n" * 251, b"", LimitError),
        (b"trusted.overlay." + b"n" * 239, b"", LimitError),
        (b"user.big", bytes(65536), LimitError),
    ],
)
def test_attributes_without_room_are_refused(name: bytes, value: bytes, error: type[Exception]) -> None:
    for inode in (file(), directory(), Inode(0o120777, target=b"x")):
        inode.xattrs = {name: value}
        with pytest.raises(error, match=r"^/etc/x: "):
            write_tree(directory(etc=directory(x=inode)))


def test_attributes_up_to_the_limits_are_kept(tmp_path: Path) -> None:
    # The area's size is a count of 4 bytes in 16 bits: 262,148 bytes with its header.
    kept = {b"user.%d" % number: bytes([number]) * 65535 for number in range(3)}
    kept[b"user.a"] = bytes(65490)
    image = write_tree(
        directory(a=Inode(0o100644, inline=b"x", xattrs=kept), b=Inode(0o100644, inline=b"y" * 64, xattrs={b"user.v": b"\xff" * 65535}))
    )
    tree = Tree(bytes(image))
    _, nids = read_all(tree)
    assert {name: tree.xattr(nids[b"/a"], name) for name in tree.xattr_names(nids[b"/a"])} == kept
    assert fsck(image, tmp_path) == ""
    kept[b"user.a"] = bytes(65536 - 20)
    with pytest.raises(LimitError, match=r"^/a: its extended attributes"):
        write_tree(directory(a=Inode(0o100644, inline=b"x", xattrs=kept)))


def test_overlay_attributes_of_the_image_are_escaped() -> None:
    own = {b"trusted.overlay.metacopy": b"mine", b"trusted.overlay.overlay.redirect": b"too", b"trusted.overlay.opaque": b"y"}
    tree = Tree(bytes(write_tree(directory(a=file(xattrs=own)))))
    nid = tree.lookup(tree.root, b"a")
    assert nid is not None
    assert {name: tree.xattr(nid, name) for name in tree.xattr_names(nid)} == own
    stored = [index_rest for *index_rest, _ in tree._xattrs(nid)]
    assert [rest for _, rest in stored] == [
        b"overlay.metacopy",
        b"overlay.redirect",
        b"overlay.overlay.metacopy",
        b"overlay.overlay.opaque",
        b"overlay.overlay.overlay.redirect",
    ]
    assert tree.xattr(nid, b"trusted.overlay.redirect") is None


@pytest.mark.parametrize(
    "inode, error",
    [
        (Inode(0o100644, uid=1 << 32), LimitError),
        (Inode(0o100644, gid=-1), LimitError),
        (Inode(0o100644, mtime_ns=1 << 100), LimitError),
        (file(uid=1 << 32), LimitError),
        (Inode(0o20644, rdev=1 << 32), LimitError),
        (Inode(0o644), SourceError),
        (Inode(0o100644, inline=bytes(65)), SourceError),
        (Inode(0o100644, size=70), SourceError),
        (Inode(0o100644, size=0, object=bytes(32)), SourceError),
        (Inode(0o100644, size=1 << 63, object=bytes(32)), SourceError),
        (Inode(0o100644, size=70, object=bytes(31)), SourceError),
        (Inode(0o120777, size=70, object=bytes(32)), SourceError),
        (Inode(0o120777), SourceError),
        (Inode(0o120777, target=b"t" * 4096), SourceError),
        (Inode(0o120777, target=b"a\0b"), SourceError),
    ],
)
def test_inodes_that_cannot_be_are_refused_by_path(inode: Inode, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^/a\\xff/x: "):
        write_tree(Inode(0o40755, children={b"a\xff": directory(w=file(), x=inode)}))


def test_a_directory_has_one_name() -> None:
    below = directory()
    with pytest.raises(SourceError, match=r"^/b: a directory with two names"):
        write_tree(directory(a=below, b=below))
    root = directory()
    root.children = {b"up": root}
    with pytest.raises(SourceError, match=r"^/up: a directory with two names"):
        write_tree(root)


def test_the_root_is_a_directory() -> None:
    with pytest.raises(SourceError, match="must be a directory"):
        write_tree(file())


# -- hostile images -------------------------------------------------------------------------------------------------------------------


def resealed(image: bytes | bytearray, offset: int, new: bytes) -> bytes:
    """Change bytes and give the superblock the checksum of what it then says: what someone who means harm would do."""
    changed = bytearray(image)
    changed[offset : offset + len(new)] = new
    changed[erofs.SUPER_OFFSET + 4 : erofs.SUPER_OFFSET + 8] = erofs.superblock_checksum(changed).to_bytes(4, "little")
    return bytes(changed)


@pytest.mark.parametrize(
    "offset, new, error",
    [
        (0, b"\0", IntegrityError),  # magic
        (80, b"\x05", UnsupportedError),  # feature_incompat
        (80, b"\x04\x01", UnsupportedError),
        (12, b"\x09", UnsupportedError),  # block size
        (13, b"\x01", UnsupportedError),  # superblock slots
        (40, b"\x01", UnsupportedError),  # metadata's block
        (90, b"\x01", UnsupportedError),  # directory block size
        (36, b"\x07", IntegrityError),  # blocks
        (8, b"\0", IntegrityError),  # no checksum
        (14, b"\0\0", IntegrityError),  # root
        (14, b"\xff\xff", IntegrityError),
    ],
)
def test_superblocks_that_are_not_a_trees_are_refused(offset: int, new: bytes, error: type[Exception]) -> None:
    image = write_tree(directory(a=file()))
    with pytest.raises(error):
        Tree(resealed(image, erofs.SUPER_OFFSET + offset, new))


def test_a_superblock_that_is_not_its_checksums_is_refused() -> None:
    image = write_tree(directory(a=file()))
    image[2000] ^= 1
    with pytest.raises(IntegrityError, match="checksum"):
        Tree(image)


@pytest.mark.parametrize(
    "offset, new, error",
    [
        (0, b"\x08\x00", UnsupportedError),  # a compact inode
        (0, b"\x03\x00", UnsupportedError),  # compressed
        (0, b"\x19\x00", UnsupportedError),  # a flag of later kernels
        (4, b"\xff\x01", IntegrityError),  # no type
        (8, b"\xff" * 8, IntegrityError),  # size
        (40, b"\xff" * 4, IntegrityError),  # nanoseconds
        (64 + 40, b"x", IntegrityError),  # not the redirect attribute
        (64 + 53, b"A", IntegrityError),  # not a digest in its one spelling
        (64 + 53, b" ", IntegrityError),
    ],
)
def test_damaged_inodes_are_refused(offset: int, new: bytes, error: type[Exception]) -> None:
    image = write_tree(directory(a=file(), b=file(1)))
    nid = Tree(image).lookup(Tree(image).root, b"a")
    assert nid is not None
    tree = Tree(resealed(image, nid * 32 + offset, new))
    with pytest.raises(error):  # noqa: PT012 (any of them may be the one that sees it)
        tree.stat(nid)
        tree.object_of(nid)
        tree.inline(nid)


@pytest.mark.parametrize(
    "behind, fields, call",
    [
        (64, {2: b"\x02\0"}, "xattr_names"),  # attributes behind the end
        (96, {2: b"\x11\0"}, "xattr_names"),
        (64, {0: b"\x05\0", 4: b"\xed\x41", 8: b"\x20"}, "readdir"),  # entries behind the end
        (96, {0: b"\x05\0", 2: b"\x05\0", 4: b"\xed\x41", 8: b"\x04"}, "readdir"),  # less than an entry, at the end
        (96, {0: b"\x01\0", 4: b"\xed\x41", 8: b"\x04", 16: b"\xff\xff"}, "readdir"),
        (64, {0: b"\x05\0", 4: b"\xff\xa1", 8: b"\x04"}, "readlink"),
        (64, {0: b"\x09\0", 2: b"\x1c\0", 8: b"\x04"}, "object_of"),
        (32, {}, "stat"),
    ],
)
def test_nothing_is_read_behind_the_end(behind: int, fields: dict[int, bytes], call: str) -> None:
    image = write_tree(directory(**{f"f{number}": file(number) for number in range(30)}))
    start = len(image) - behind
    image[start:] = bytes(behind)
    image[start : start + 6] = b"\x01\0\0\0\xa4\x81"
    for offset, new in fields.items():
        image[start + offset : start + offset + len(new)] = new
    tree = Tree(resealed(image, 0, b""))
    with pytest.raises(IntegrityError):
        list(getattr(tree, call)(start // 32))


@pytest.mark.parametrize("name", [b"a/b", b"a\0b", b"z/b"])
def test_names_that_cannot_be_are_not_shown(name: bytes) -> None:
    image = write_tree(directory(**{name.replace(b"/", b"_").replace(b"\0", b"_").decode(): file(), "s": file(1)}))
    at = image.index(name[:1] + b"_b")
    tree = Tree(resealed(image, at, name))
    with pytest.raises(IntegrityError, match="names that cannot be"):
        list(tree.readdir(tree.root))


def exercise(image: bytes) -> None:
    """Ask everything there is of an image, as a daemon would; only the project's own errors may come out."""
    try:
        tree = Tree(image)
    except (IntegrityError, UnsupportedError):
        return
    pending, seen = [tree.root], {tree.root, 0, -1, 1 << 64}
    for nid in seen:
        _ask(tree, nid, [])
    while pending:
        children: list[int] = []
        _ask(tree, pending.pop(), children)
        for child in children:
            if child not in seen:
                seen.add(child)
                pending.append(child)


def _ask(tree: Tree, nid: int, children: list[int]) -> None:
    def listing() -> None:
        for position, (name, child, _, cookie) in enumerate(tree.readdir(nid)):
            assert position <= len(tree._buffer)
            assert type(name) is bytes
            assert b"/" not in name
            assert cookie > 0
            children.append(child)

    def attributes() -> None:
        for name in tree.xattr_names(nid):
            tree.xattr(nid, name)

    calls: list[Callable[[], object]] = [listing, attributes]
    calls += [partial(method, nid) for method in (tree.stat, tree.readlink, tree.inline, tree.object_of)]
    calls += [partial(tree.lookup, nid, name) for name in (b".", b"a", b"zz", b"\xff")]
    for call in calls:
        with contextlib.suppress(IntegrityError, UnsupportedError):
            call()


def small_image() -> bytes:
    crowd = Inode(0o40755, children={b"%0200d" % number: file(number) for number in range(40)})
    odd = {b"user.a": b"1", b"trusted.overlay.x": b"2", b"security.y": b"z" * 300}
    root = directory(
        a=file(xattrs=odd), b=Inode(0o120777, target=b"t" * 50), c=Inode(0o100600, inline=b"text"), d=crowd, e=Inode(0o20600, rdev=259)
    )
    root.xattrs = odd
    return bytes(write_tree(root))


def test_every_truncation_is_survived() -> None:
    image = small_image()
    for length in [*range(0, len(image), 97), len(image) - 1]:
        exercise(image[:length])


@settings(_GENEROUS, max_examples=400)
@given(data=st.data())
def test_any_damage_gives_an_error_or_a_value(data: st.DataObject) -> None:
    image = small_image()
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(erofs.SUPER_OFFSET, len(image) - 1))
        new = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\xff\xff", bytes(8), b"\x0c\0"])))
        image = resealed(image, offset, new[: len(image) - offset])
    exercise(image)


def test_every_byte_of_the_metadata_may_be_flipped() -> None:
    image = small_image()
    nonzero = [offset for offset in range(erofs.SUPER_OFFSET, len(image)) if image[offset]]
    for offset in nonzero[::13]:
        for flip in (0x01, 0x80):
            exercise(resealed(image, offset, bytes([image[offset] ^ flip])))


def test_a_directory_that_leads_back_to_itself_ends() -> None:
    image = write_tree(directory(a=directory(b=directory())))
    tree = Tree(bytes(image))
    below = tree.lookup(tree.root, b"a")
    assert below is not None
    looped = bytes(image).replace(below.to_bytes(8, "little") + b"\x28", tree.root.to_bytes(8, "little") + b"\x28")
    exercise(resealed(looped, 0, b""))
