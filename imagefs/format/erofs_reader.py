"""Reads a tree in place: lookup, readdir, stat, readlink and xattrs straight from the mapped EROFS image.

Invariants: opening builds nothing but this object, whatever the image's size; every offset that the image gives is checked before it is
used, so that a damaged or hostile image gives ``IntegrityError``, in bounded time, and never another exception; no method changes
anything, so all are safe from many threads.

An inode is named by its ``nid``. A position in a directory is a small integer that means the same in every process, so listing
can go on anywhere, also in another process.
"""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from imagefs.digest import Buffer
from imagefs.errors import IntegrityError, UnsupportedError
from imagefs.format import erofs
from imagefs.format.erofs import BLOCK_SIZE, DIRENT, INODE, INODE_SIZE, SLOT_SIZE

_S_IFMT: Final = 0o170000
_S_IFREG: Final = 0o100000
_S_IFDIR: Final = 0o040000
_S_IFLNK: Final = 0o120000
_S_IFCHR: Final = 0o020000
_S_IFBLK: Final = 0o060000

_CHUNK: Final = erofs.inode_format(erofs.LAYOUT_CHUNK)
_INLINE: Final = erofs.inode_format(erofs.LAYOUT_INLINE)
_PLAIN: Final = erofs.inode_format(erofs.LAYOUT_PLAIN)
_FORMATS: Final = (_CHUNK, _INLINE, _PLAIN)
_MODES: Final = frozenset(erofs.FILE_TYPES)
_POSITION_BITS: Final = 9
"""A dirent block holds at most 4096 // 13 names."""
_BLOB_DIGITS: Final = 66
_LINK_MAX: Final = 4095


class InodeStat(NamedTuple):
    """What ``stat`` shows. ``size`` in bytes, ``mtime_ns`` signed nanoseconds since the epoch."""

    nid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_ns: int


class _Node(NamedTuple):
    """An inode as it lies there; ``offset`` is its first byte in the image."""

    layout: int
    xattr_count: int
    mode: int
    reserved: int
    size: int
    union: int
    ino: int
    uid: int
    gid: int
    seconds: int
    nanoseconds: int
    nlink: int
    offset: int


class Tree:
    """A mapped tree."""

    __slots__ = ("_buffer", "_size", "inode_count", "root")

    def __init__(self, buffer: Buffer) -> None:
        """Check the superblock. ``UnsupportedError`` for a feature that trees do not have, ``IntegrityError`` for anything that is no tree."""
        if len(buffer) < BLOCK_SIZE:
            raise IntegrityError("a tree that is shorter than a block")
        fields = erofs.SUPER.unpack_from(buffer, erofs.SUPER_OFFSET)
        magic, checksum, compat, block_bits, extra_slots, root, inodes, _, _, blocks, meta, _, _, _, incompat = fields
        if magic != erofs.SUPER_MAGIC:
            raise IntegrityError("not a tree: it has no EROFS superblock")
        if incompat & ~erofs.INCOMPAT_CHUNKED_FILE or block_bits != erofs.BLOCK_BITS or extra_slots or meta:
            raise UnsupportedError(
                f"a tree with EROFS features {incompat:#x} and blocks of 2^{block_bits} bytes: this version reads "
                f"{erofs.INCOMPAT_CHUNKED_FILE:#x} and 2^{erofs.BLOCK_BITS}",
                hint="update imagefs",
            )
        if not compat & erofs.COMPAT_SB_CHECKSUM or checksum != erofs.superblock_checksum(buffer):
            raise IntegrityError("a tree whose superblock does not have its checksum")
        if blocks * BLOCK_SIZE != len(buffer):
            raise IntegrityError(f"a tree of {len(buffer)} bytes that says it has {blocks} blocks")
        self._buffer = buffer
        self._size = len(buffer)
        self.root: int = root
        self.inode_count: int = inodes
        if not self.is_dir(root):
            raise IntegrityError("a tree whose root is no directory")

    # -- inodes ---------------------------------------------------------------------------------------------------------------------

    def _node(self, nid: int) -> _Node:
        offset = nid * SLOT_SIZE
        if not erofs.SUPER_OFFSET < offset <= self._size - INODE_SIZE:
            raise IntegrityError(f"a tree names inode {nid}, which is outside of it")
        node = _Node(*INODE.unpack_from(self._buffer, offset), offset)
        if node.layout not in _FORMATS or node.mode & _S_IFMT not in _MODES or node.nanoseconds >= 1_000_000_000:
            raise IntegrityError(f"inode {nid} of a tree is damaged, or of a kind that trees do not have")
        return node

    def stat(self, nid: int) -> InodeStat:
        """Return what ``stat`` shows."""
        offset = nid * SLOT_SIZE
        if not erofs.SUPER_OFFSET < offset <= self._size - INODE_SIZE:
            raise IntegrityError(f"a tree names inode {nid}, which is outside of it")
        layout, _, mode, _, size, union, _, uid, gid, seconds, nanoseconds, nlink = INODE.unpack_from(self._buffer, offset)
        kind = mode & _S_IFMT
        if layout not in _FORMATS or kind not in _MODES or nanoseconds >= 1_000_000_000 or size >= 1 << 63:
            raise IntegrityError(f"inode {nid} of a tree is damaged, or of a kind that trees do not have")
        rdev = _device(union) if kind in (_S_IFCHR, _S_IFBLK) else 0
        return InodeStat(nid, mode, nlink, uid, gid, rdev, size, seconds * 1_000_000_000 + nanoseconds)

    def is_dir(self, nid: int) -> bool:
        """Say whether an inode is a directory."""
        return self._node(nid).mode & _S_IFMT == _S_IFDIR

    def readlink(self, nid: int) -> bytes:
        """Return a symbolic link's target."""
        node = self._node(nid)
        if node.mode & _S_IFMT != _S_IFLNK or not 0 < node.size <= _LINK_MAX:
            raise IntegrityError(f"inode {nid} of a tree is no symbolic link that can be")
        return self._data(node)

    def inline(self, nid: int) -> bytes:
        """Return the content of a regular file that has no object (``b""`` of an empty one)."""
        node = self._node(nid)
        if node.mode & _S_IFMT != _S_IFREG or node.layout == _CHUNK or node.size > BLOCK_SIZE:
            raise IntegrityError(f"inode {nid} of a tree has no inlined content that can be")
        return self._data(node)

    def object_of(self, nid: int) -> bytes | None:
        """Return the raw digest of a regular file's object; None if its content is inlined, or it is no regular file."""
        node = self._node(nid)
        if node.layout != _CHUNK:
            return None
        for index, name, value in self._xattrs(node):
            if index == 4 and name == erofs.REDIRECT:
                try:
                    if len(value) != _BLOB_DIGITS or value[:1] != b"/" or value[3:4] != b"/":
                        break
                    return bytes.fromhex((value[1:3] + value[4:]).decode("ascii"))
                except ValueError:
                    break
        raise IntegrityError(f"inode {nid} of a tree names no object")

    def _data(self, node: _Node) -> bytes:
        """Return all the data of an inode that is not chunk-based; its size was bounded before."""
        blocks, tail = divmod(node.size, BLOCK_SIZE)
        if node.layout == _PLAIN:
            return bytes(self._span(node.union * BLOCK_SIZE, node.size)) if node.size else b""
        data = bytes(self._span(node.union * BLOCK_SIZE, blocks * BLOCK_SIZE)) if blocks else b""
        return data + bytes(self._span(self._tail(node), tail))

    def _tail(self, node: _Node) -> int:
        """Return where an inode's inlined tail is."""
        area = node.xattr_count and (node.xattr_count - 1) * 4 + erofs.XATTR_HEADER_SIZE
        return node.offset + INODE_SIZE + area

    def _span(self, start: int, length: int) -> Buffer:
        if start < 0 or start + length > self._size:
            raise IntegrityError("a tree names data outside of it")
        return self._buffer[start : start + length]

    # -- extended attributes --------------------------------------------------------------------------------------------------------

    def _xattrs(self, node: _Node) -> Iterator[tuple[int, bytes, bytes]]:
        if not node.xattr_count:
            return
        start = node.offset + INODE_SIZE
        area = bytes(self._span(start, (node.xattr_count - 1) * 4 + erofs.XATTR_HEADER_SIZE))
        if area[4]:
            raise UnsupportedError("a tree with shared extended attributes, which trees do not have")
        at = erofs.XATTR_HEADER_SIZE
        while at + 4 <= len(area):
            name_length, index, value_size = erofs.XATTR_ENTRY.unpack_from(area, at)
            end = at + 4 + name_length + value_size
            if end > len(area) or index not in erofs.XATTR_PREFIXES:
                raise IntegrityError("an inode of a tree has damaged extended attributes")
            yield index, area[at + 4 : at + 4 + name_length], area[at + 4 + name_length : end]
            at = (end + 3) & -4

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """Return an inode's extended attributes as the image has them, in order: what makes overlayfs work is not among them."""
        found = {}
        for index, rest, value in self._xattrs(self._node(nid)):
            name = erofs.XATTR_PREFIXES[index] + rest
            if name.startswith(erofs.OVERLAY):
                if not name.startswith(erofs.OVERLAY_ESCAPED):
                    continue
                name = erofs.OVERLAY + name[len(erofs.OVERLAY_ESCAPED) :]
            found[name] = value
        return found

    # -- directories ----------------------------------------------------------------------------------------------------------------

    def _directory(self, nid: int) -> tuple[_Node, int]:
        """Return a directory's inode and how many dirent blocks it has."""
        node = self._node(nid)
        if node.mode & _S_IFMT != _S_IFDIR:
            raise IntegrityError(f"inode {nid} of a tree is no directory")
        count = (node.size + BLOCK_SIZE - 1) // BLOCK_SIZE
        if not 0 < count <= self._size // BLOCK_SIZE + 1:
            raise IntegrityError(f"directory {nid} of a tree cannot have {node.size} bytes")
        return node, count

    def _block(self, node: _Node, number: int) -> bytes:
        """Return one dirent block, without the padding of the last."""
        length = min(BLOCK_SIZE, node.size - number * BLOCK_SIZE)
        if node.layout == _INLINE and length < BLOCK_SIZE:
            return bytes(self._span(self._tail(node), length))
        return bytes(self._span((node.union + number) * BLOCK_SIZE, length))

    def lookup(self, nid: int, name: bytes) -> int | None:
        """Return the nid of ``name`` in directory ``nid``, or None. Binary search over its blocks, then within one."""
        node, count = self._directory(nid)
        low, high = 0, count - 1
        while low < high:
            middle = (low + high + 1) >> 1
            block = self._block(node, middle)
            if _name(block, _entry_count(block), 0) <= name:
                low = middle
            else:
                high = middle - 1
        block = self._block(node, low)
        entries = _entry_count(block)
        low, high = 0, entries
        while low < high:
            middle = (low + high) >> 1
            found = _name(block, entries, middle)
            if found < name:
                low = middle + 1
            elif found > name:
                high = middle
            else:
                return int(DIRENT.unpack_from(block, middle * DIRENT.size)[0])
        return None

    def readdir(self, nid: int, position: int = 0) -> Iterator[tuple[bytes, int, int]]:
        """Yield (name, nid, next position) of a directory, ``.`` and ``..`` included, from ``position`` on (0: the start)."""
        node, count = self._directory(nid)
        number, index = position >> _POSITION_BITS, position & ((1 << _POSITION_BITS) - 1)
        unpack = DIRENT.unpack_from
        while number < count:
            block = self._block(node, number)
            entries = _entry_count(block)
            while index < entries:
                child = unpack(block, index * DIRENT.size)[0]
                name = _name(block, entries, index)
                index += 1
                yield name, child, number << _POSITION_BITS | index if index < entries else number + 1 << _POSITION_BITS
            number, index = number + 1, 0


def _entry_count(block: bytes) -> int:
    """Return how many dirents a block has: the first name begins where they end."""
    if len(block) < DIRENT.size:
        raise IntegrityError("a directory of a tree is damaged")
    first = DIRENT.unpack_from(block)[1]
    if not first or first % DIRENT.size or first > len(block):
        raise IntegrityError("a directory of a tree is damaged")
    return int(first // DIRENT.size)


def _name(block: bytes, entries: int, index: int) -> bytes:
    start = DIRENT.unpack_from(block, index * DIRENT.size)[1]
    end = DIRENT.unpack_from(block, (index + 1) * DIRENT.size)[1] if index + 1 < entries else len(block)
    name = block[start:end]
    if index + 1 == entries:
        name = name.rstrip(b"\0")
    if not name or start < entries * DIRENT.size:
        raise IntegrityError("a directory of a tree is damaged")
    return name


def _device(encoded: int) -> int:
    """Decode the kernel's ``new_encode_dev``."""
    return os.makedev((encoded & 0xFFF00) >> 8, (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00))
