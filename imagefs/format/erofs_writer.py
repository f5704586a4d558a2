"""Writes a tree: an EROFS image with all metadata and no file data but tiny inlined files.

Invariants:

- the same inodes give the same bytes: nothing of time, host or memory order gets in, and the uuid is a digest of the rest;
- the kernel's driver and ``fsck.erofs`` accept the image;
- the inodes of one directory's children lie one behind the other, so that listing it with attributes reads one run;
- no recursion: depth costs memory, not stack. Beyond the image, memory holds one dictionary entry an inode.

Two passes: give each inode its place, for which sizes are enough, and count links; then write. Places are made in the order of a walk that
takes directories by name, parents first. What does not live here: the structures (``erofs``), and what a tree is made of (``tree``).
"""

import struct
from binascii import hexlify
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from imagefs.digest import DIGEST_SIZE, digest_of
from imagefs.errors import ImageFSError, LimitError, SourceError, UnsupportedError
from imagefs.format import erofs
from imagefs.format.erofs import BLOCK_SIZE, DIRENT_SIZE, INODE, INODE_SIZE, SLOT_BITS, SLOT_SIZE
from imagefs.format.tree import INLINE_MAX, Inode

_S_IFMT: Final = 0o170000
_S_IFREG: Final = 0o100000
_S_IFDIR: Final = 0o040000
_S_IFLNK: Final = 0o120000
_DEVICES: Final = (0o020000, 0o060000)

_TAIL_MAX: Final = BLOCK_SIZE - INODE_SIZE
"""The largest tail that is inlined: one of this size fits in a block whatever lies between it and a slot's start."""
_SYMLINK_MAX: Final = 4095
_XATTR_NAME_MAX: Final = 255
_SIZE_END: Final = 1 << 63
_ONE_CHUNK: Final = 1 << (erofs.BLOCK_BITS + erofs.CHUNK_BITS_MAX)

_OBJECT_FILE: Final = struct.Struct(f"{INODE.format}{erofs.OBJECT_XATTRS.format[1:]}4s")
"""A whole file with an object, no attributes of its own, and one chunk: nearly every file there is, so it is packed in one call."""


@dataclass(slots=True)
class _Layout:
    """Where everything goes. ``nids`` holds the inodes in the order of their places.

    ``links`` counts the names of what has not just one; ``parents`` leads from directory to directory; ``outside`` tells the first block of
    data that is not inlined, counted from the end of the metadata, and ``blocks`` how many there are. ``end`` is the metadata's, in bytes.
    """

    nids: dict[Inode, int] = field(default_factory=dict)
    links: dict[Inode, int] = field(default_factory=dict)
    parents: dict[Inode, Inode] = field(default_factory=dict)
    outside: dict[Inode, int] = field(default_factory=dict)
    blocks: int = 0
    end: int = erofs.METADATA_START


def write_tree(root: Inode) -> bytearray:
    """Return the EROFS image of the tree under ``root``, a directory.

    ``SourceError`` for inodes that no file system can have, ``LimitError`` for what EROFS has no room for, ``UnsupportedError`` for an
    extended attribute in a namespace that it does not know. The message names the path.
    """
    layout = _lay_out(root)
    # fsck.erofs reads an attribute header behind every inode, also one that has none: there must be room behind the last.
    data_start = -(-(layout.end + erofs.XATTR_HEADER_SIZE) // BLOCK_SIZE)
    image = bytearray((data_start + layout.blocks) * BLOCK_SIZE)
    _write_inodes(layout, image, data_start)
    _write_super(image, layout.nids[root], len(layout.nids))
    return image


# -- first pass: places -------------------------------------------------------------------------------------------------------------------


def _lay_out(root: Inode) -> _Layout:
    if root.mode & _S_IFMT != _S_IFDIR:
        raise SourceError("the root of a tree must be a directory")
    layout = _Layout()
    nids, links, parents = layout.nids, layout.links, layout.parents
    pending: list[tuple[Inode, list[bytes]]] = []

    def add_directory(directory: Inode, parent: Inode) -> None:
        parents[directory] = parent
        links[directory] = 2
        names = _names(directory)
        pending.append((directory, names))
        _place(layout, directory, _directory_size(names))

    try:
        add_directory(root, root)
    except ImageFSError as error:
        raise _at_path(error, layout, root, None) from None
    while pending:
        directory, names = pending.pop()
        children, first_below = directory.children or {}, len(pending)
        for name in names:
            child = children.get(name)
            if child is None:  # "." and ".."
                continue
            is_directory = child.mode & _S_IFMT == _S_IFDIR
            try:
                if child not in nids:
                    if is_directory:
                        links[directory] += 1
                        add_directory(child, directory)
                    else:
                        _place(layout, child, _content_size(child))
                elif is_directory:
                    raise SourceError("a directory with two names")
                else:
                    links[child] = links.get(child, 1) + 1
            except ImageFSError as error:
                raise _at_path(error, layout, directory, name) from None
        # What was pushed last is taken first: reversed, so that subdirectories are taken in the order of their names.
        pending[first_below:] = reversed(pending[first_below:])
    return layout


def _names(directory: Inode) -> list[bytes]:
    """Return a directory's names in bytewise order, with ``.`` and ``..`` among them."""
    children = directory.children or {}
    if children:
        joined = b"".join(children)
        if b"/" in joined or b"\0" in joined or b"" in children or b"." in children or b".." in children:
            wrong = next(name for name in children if b"/" in name or b"\0" in name or name in {b"", b".", b".."})
            raise SourceError(f"it holds {wrong[:300]!r}, which is not a file name")
        longest = max(children, key=len)
        if len(longest) > erofs.NAME_MAX:
            raise SourceError(f"it holds a name of {len(longest)} bytes: {longest[:40]!r}…", hint="a name has at most 255 bytes")
    return sorted([b".", b"..", *children])


def _directory_size(names: Sequence[bytes]) -> int:
    """Return ``i_size`` of a directory: all its dirent blocks are whole but the last."""
    *whole, last = _split(names)
    return len(whole) * BLOCK_SIZE + DIRENT_SIZE * len(last) + sum(map(len, last))


def _split(names: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Cut sorted names into runs that each fill a dirent block as far as it goes."""
    if DIRENT_SIZE * len(names) + sum(map(len, names)) <= BLOCK_SIZE:
        return [names]
    runs, start, used = [], 0, 0
    for index, name in enumerate(names):
        used += DIRENT_SIZE + len(name)
        if used > BLOCK_SIZE:
            runs.append(names[start:index])
            start, used = index, DIRENT_SIZE + len(name)
    return [*runs, names[start:]]


def _content_size(inode: Inode) -> int:
    """Return ``i_size`` of anything but a directory, after checking that there can be such an inode."""
    kind = inode.mode & _S_IFMT
    if kind == _S_IFREG:
        if inode.object is not None:
            if len(inode.object) != DIGEST_SIZE or not 0 < inode.size < _SIZE_END:
                raise SourceError(f"a file of {inode.size} bytes cannot be kept as an object")
            return inode.size
        length = len(inode.inline or b"")
        if length > INLINE_MAX or inode.size not in {0, length}:
            raise SourceError(f"a file of {inode.size} bytes comes with {length} bytes to be inlined")
        return length
    if inode.object is not None or inode.inline:
        raise SourceError("only regular files have content")
    if kind == _S_IFLNK:
        if not 0 < len(inode.target) <= _SYMLINK_MAX or b"\0" in inode.target:
            raise SourceError(f"a symbolic link cannot have the target {inode.target[:40]!r} of {len(inode.target)} bytes")
        return len(inode.target)
    if kind not in erofs.FILE_TYPES:
        raise SourceError(f"there is no file of mode {inode.mode:#o}")
    return 0


def _place(layout: _Layout, inode: Inode, size: int) -> None:
    """Give an inode with ``size`` bytes of data the next place that fits it."""
    at = layout.end
    if at % BLOCK_SIZE > _TAIL_MAX:  # an inode lies within one block
        at += SLOT_SIZE
    if inode.object is not None:
        body = INODE_SIZE + 4 * _chunk_count(size)
        body += len(_xattrs(inode)) if inode.xattrs else erofs.OBJECT_XATTRS.size
    else:
        body = INODE_SIZE
        if inode.xattrs:
            body += len(_xattrs(inode))
        blocks, tail = _spread(size)
        if blocks:
            layout.outside[inode] = layout.blocks
            layout.blocks += blocks
        if tail:
            room = BLOCK_SIZE - (at + body) % BLOCK_SIZE
            if room < tail:  # so does a tail
                at += (room + SLOT_SIZE - 1) & -SLOT_SIZE
                if at % BLOCK_SIZE > _TAIL_MAX:
                    at += SLOT_SIZE
            body += tail
    layout.nids[inode] = at >> SLOT_BITS
    layout.end = (at + body + SLOT_SIZE - 1) & -SLOT_SIZE


def _spread(size: int) -> tuple[int, int]:
    """Return how many blocks of data lie outside of the metadata, and how many bytes behind the inode."""
    blocks, tail = divmod(size, BLOCK_SIZE)
    return (blocks + 1, 0) if tail > _TAIL_MAX else (blocks, tail)


def _chunk_bits(size: int) -> int:
    """Return by how many bits a chunk is larger than a block, so that one chunk holds the file where EROFS has such chunks."""
    return min(max((size - 1).bit_length() - erofs.BLOCK_BITS, 0), erofs.CHUNK_BITS_MAX)


def _chunk_count(size: int) -> int:
    return 1 if size <= _ONE_CHUNK else -(-size // _ONE_CHUNK)


# -- second pass: bytes -------------------------------------------------------------------------------------------------------------------


def _write_inodes(layout: _Layout, image: bytearray, data_start: int) -> None:
    links = layout.links
    pack = _OBJECT_FILE.pack_into
    form, count, head, null = erofs.FORMAT_CHUNK, erofs.OBJECT_XATTR_COUNT, erofs.OBJECT_HEAD, erofs.NULL_ADDRESS
    for number, (inode, nid) in enumerate(layout.nids.items(), 1):
        try:
            size = inode.size
            if inode.object is None or inode.xattrs or size > _ONE_CHUNK:
                _write_inode(layout, image, data_start, inode, number)
                continue
            name = hexlify(inode.object)
            seconds, nanoseconds = divmod(inode.mtime_ns, erofs.NANOSECONDS)
            pack(
                image, nid << SLOT_BITS, form, count, inode.mode, 0, size, _chunk_bits(size), number, inode.uid, inode.gid,
                seconds, nanoseconds, links.get(inode, 1), head, name[:2], b"/", name[2:], null,
            )  # fmt: skip
        except struct.error:
            raise _at_path(_misfit(inode), layout, *_find(layout, inode)) from None


def _write_inode(layout: _Layout, image: bytearray, data_start: int, inode: Inode, number: int) -> None:
    """Write any inode, with its attributes and its data."""
    kind = inode.mode & _S_IFMT
    form, union, data = erofs.FORMAT_PLAIN, 0, b""
    if inode.object is not None:
        size = inode.size
        form, union, data = erofs.FORMAT_CHUNK, _chunk_bits(size), erofs.NULL_ADDRESS * _chunk_count(size)
    else:
        if kind == _S_IFDIR:
            data = _dirents(layout, inode)
        elif kind == _S_IFREG:
            data = inode.inline or b""
        elif kind == _S_IFLNK:
            data = inode.target
        elif kind in _DEVICES:
            # The kernel's new_encode_dev, 12 bits of major and 20 of minor, has the bits where makedev(3) has them.
            union = inode.rdev
        size = len(data)
        blocks, tail = _spread(size)
        if blocks:
            union = data_start + layout.outside[inode]
            image[union * BLOCK_SIZE : union * BLOCK_SIZE + size - tail] = data[: size - tail]
            data = data[size - tail :]
        if tail:
            form = erofs.FORMAT_INLINE
    xattrs = _xattrs(inode)
    at = layout.nids[inode] << SLOT_BITS
    seconds, nanoseconds = divmod(inode.mtime_ns, erofs.NANOSECONDS)
    INODE.pack_into(
        image, at, form, erofs.xattr_count(len(xattrs)), inode.mode, 0, size, union, number, inode.uid, inode.gid, seconds, nanoseconds,
        layout.links.get(inode, 1),
    )  # fmt: skip
    behind = xattrs + data
    image[at + INODE_SIZE : at + INODE_SIZE + len(behind)] = behind


def _dirents(layout: _Layout, directory: Inode) -> bytes:
    """Return a directory's data: dirent blocks, each but the last padded to its size."""
    nids, types = layout.nids, erofs.FILE_TYPES
    found = {**(directory.children or {}), b".": directory, b"..": layout.parents[directory]}
    pack, blocks = erofs.DIRENT.pack, []
    for run in _split(sorted(found)):
        offsets = accumulate(map(len, run), initial=DIRENT_SIZE * len(run))
        inodes = [found[name] for name in run]
        rows = [pack(nids[inode], offset, types[inode.mode & _S_IFMT]) for inode, offset in zip(inodes, offsets, strict=False)]
        blocks.append(b"".join([*rows, *run]))
    return b"".join([*(block.ljust(BLOCK_SIZE, b"\0") for block in blocks[:-1]), blocks[-1]])


def _write_super(image: bytearray, root_nid: int, inodes: int) -> None:
    def pack(uuid: bytes, checksum: int) -> None:
        erofs.SUPER.pack_into(
            image, erofs.SUPER_OFFSET, erofs.SUPER_MAGIC, checksum, erofs.COMPAT_SB_CHECKSUM | erofs.COMPAT_MTIME, erofs.BLOCK_BITS, 0,
            root_nid, inodes, 0, 0, len(image) // BLOCK_SIZE, 0, 0, uuid, b"", erofs.INCOMPAT_CHUNKED_FILE, 0, 0, 0, 0,
        )  # fmt: skip

    pack(bytes(16), 0)
    uuid = digest_of(image)[:16]
    pack(uuid, 0)
    pack(uuid, erofs.superblock_checksum(image))


# -- extended attributes ------------------------------------------------------------------------------------------------------------------


def _xattrs(inode: Inode) -> bytes:
    """Return an inode's attribute area, or nothing."""
    head = b""
    if inode.object is not None:
        name = hexlify(inode.object)
        head = erofs.OBJECT_XATTRS.pack(erofs.OBJECT_HEAD, name[:2], b"/", name[2:])
    if not inode.xattrs:
        return head
    area = b"".join([head or bytes(erofs.XATTR_HEADER_SIZE), *_own_entries(inode.xattrs.items())])
    if erofs.xattr_count(len(area)) > erofs.XATTR_COUNT_MAX:
        raise LimitError(f"its extended attributes take {len(area)} bytes", hint="a tree has room for 256 KiB of them on one file")
    return area


def _own_entries(xattrs: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    entries = []
    for name, value in sorted(xattrs):
        stored = erofs.stored_xattr_name(name)
        if stored is None or b"\0" in name:
            raise UnsupportedError(
                f"it has the extended attribute {name[:300]!r}",
                hint="a tree has room for user.*, trusted.*, security.*, system.posix_acl_access and system.posix_acl_default",
            )
        index, rest = stored
        if len(erofs.XATTR_PREFIXES[index]) + len(rest) > _XATTR_NAME_MAX:
            raise LimitError(
                f"it has an extended attribute with a name of {len(name)} bytes",
                hint="Linux knows names of 255 bytes, escaped ones of 247",
            )
        if len(value) > erofs.XATTR_VALUE_MAX:
            raise LimitError(f"its extended attribute {name!r} has {len(value)} bytes", hint="a tree has room for values of 65,535 bytes")
        entries.append(erofs.xattr_entry(index, rest, value))
    return entries


# -- saying what is wrong, and where ------------------------------------------------------------------------------------------------------


def _misfit(inode: Inode) -> ImageFSError:
    """Tell which number of an inode was too large for its field."""
    for what, value, end in (("owner", inode.uid, 1 << 32), ("group", inode.gid, 1 << 32), ("mode", inode.mode, 1 << 16)):
        if not 0 <= value < end:
            return LimitError(f"its {what} {value} does not fit EROFS")
    if not 0 <= inode.rdev < 1 << 32:
        return LimitError(f"its device number {inode.rdev:#x} is not one that Linux has", hint="12 bits of major, 20 bits of minor number")
    return LimitError(f"its time of {inode.mtime_ns} ns does not fit EROFS")


def _find(layout: _Layout, inode: Inode) -> tuple[Inode, bytes | None]:
    """Return a directory and a name in it under which an inode is found. Slow, for messages only."""
    for directory in layout.parents:
        for name, child in (directory.children or {}).items():
            if child is inode:
                return directory, name
    return inode, None


def _at_path(error: ImageFSError, layout: _Layout, directory: Inode, name: bytes | None) -> ImageFSError:
    """Return the error again, with the path that it is about: that of ``name`` in ``directory``, or of the directory itself."""
    parts = [] if name is None else [name]
    while (parent := layout.parents[directory]) is not directory:
        parts.append(next(name for name, child in (parent.children or {}).items() if child is directory))
        directory = parent
    path = b"/" + b"/".join(reversed(parts))
    return type(error)(f"{path.decode(errors='backslashreplace')}: {error.message}", hint=error.hint)
