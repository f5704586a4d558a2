"""Reads a tree in place: lookup, readdir, stat, readlink and attributes straight from the mapped EROFS image.

Invariants:

- opening builds nothing but one small object, whatever the image's size, and nothing is kept of what was looked at;
- every offset and length that the image gives is checked before it is used: a damaged or hostile image gives ``IntegrityError``, or
  ``UnsupportedError`` where it is EROFS that a tree does not use, in time bounded by what was asked for, and never another exception.
  A directory may still be made to lead back to its parents: who walks down must know where he has been;
- no method changes anything, so all are safe from many threads.

An inode is named by its ``nid``. A cookie is a position in a directory: a small integer that means the same in every process, so that a
listing can go on anywhere. What does not live here: mapping files, and checking the image's digest, which comes before.
"""

from binascii import unhexlify
from collections.abc import Iterator
from itertools import chain
from mmap import mmap
from operator import itemgetter
from struct import Struct
from typing import Final, NamedTuple

from imagefs.digest import Buffer
from imagefs.errors import ImageFSError, IntegrityError, UnsupportedError
from imagefs.format import erofs
from imagefs.format.erofs import BLOCK_BITS, BLOCK_SIZE, DIRENT, DIRENT_SIZE, INODE_SIZE, NAME_MAX, NANOSECONDS, SLOT_BITS

_S_IFMT: Final = 0o170000
_S_IFREG: Final = 0o100000
_S_IFDIR: Final = 0o040000
_S_IFLNK: Final = 0o120000
_DEVICES: Final = frozenset({0o020000, 0o060000})

# The same bytes as erofs.INODE, without the fields that nobody asks for: format, xattr count, mode, size, i_u, uid, gid, mtime, nsec, nlink
_INODE: Final = Struct("<HHH2xQI4xIIqII16x")
_unpack_inode = _INODE.unpack_from
# One dirent and where the next one's name begins: nid, name offset, next name offset
_TWO_DIRENTS: Final = Struct("<QH10xH")
_NAME_OFFSET: Final = Struct("<8xH2x")

_KNOWN: Final = frozenset(
    layout << 16 | kind
    for kind in erofs.FILE_TYPES
    for layout in (
        {erofs.FORMAT_PLAIN, erofs.FORMAT_INLINE, erofs.FORMAT_CHUNK}
        if kind == _S_IFREG
        else {erofs.FORMAT_PLAIN, erofs.FORMAT_INLINE}
        if kind in (_S_IFDIR, _S_IFLNK)
        else {erofs.FORMAT_PLAIN}
    )
)
"""``i_format`` and the type bits of ``i_mode``, as they go together in a tree."""
_FORMATS: Final = (erofs.FORMAT_PLAIN, erofs.FORMAT_INLINE, erofs.FORMAT_CHUNK)

_DTYPES: Final = (0, 8, 4, 2, 6, 1, 12, 10)
"""A dirent's file type to ``DT_REG`` and so on of readdir(3)."""

# i_ino, which no reader looks at, lies between what tells two inodes apart.
_INO_AT: Final = 20
_INO_END: Final = 24
_NLINK_AT: Final = 44
_FORM_AND_COUNT: Final = Struct("<HH")
_ONE: Final = b"\1\0\0\0"

_SIZE_END: Final = 1 << 63
_SYMLINK_MAX: Final = 4095
_INDEX_BITS: Final = 9
"""Of a cookie: a block has at most ``4096 // 13`` names, so 9 bits tell which."""
_INDEX_MASK: Final = (1 << _INDEX_BITS) - 1


class InodeStat(NamedTuple):
    """What ``stat`` shows: ``size`` in bytes, ``mtime_ns`` signed nanoseconds since the epoch, ``rdev`` as ``os.makedev`` makes it."""

    nid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_ns: int


_new_tuple = tuple.__new__  # half the time of calling the class, and stat is called for every entry that is listed


class _Data(NamedTuple):
    """Where data lies: ``blocks_at`` is the offset of what is in blocks, ``tail_at`` that of the last ``tail`` bytes, inlined."""

    size: int
    blocks_at: int
    tail_at: int
    tail: int


class Tree:
    """A tree in a buffer, which must not change or be closed meanwhile."""

    __slots__ = ("_buffer", "_end", "_last_nid", "inode_count", "root")

    def __init__(self, buffer: Buffer | mmap) -> None:
        """Check the superblock and that the root is a directory.

        ``UnsupportedError`` for features that trees do not have, ``IntegrityError`` for what is not a tree, or a damaged one.
        """
        if len(buffer) < BLOCK_SIZE:
            raise IntegrityError(f"a tree of {len(buffer)} bytes: not even a superblock")
        (
            magic, checksum, compat, block_bits, extra_slots, root, inodes, _, _, blocks, metadata_block, _, _, _,
            incompat, compression, devices, _, directory_block_bits,
        ) = erofs.SUPER.unpack_from(buffer, erofs.SUPER_OFFSET)  # fmt: skip
        if magic != erofs.SUPER_MAGIC:
            raise IntegrityError("not a tree: there is no EROFS superblock")
        if not compat & erofs.COMPAT_SB_CHECKSUM or checksum != erofs.superblock_checksum(buffer[:BLOCK_SIZE]):
            raise IntegrityError("the tree's superblock does not have its checksum")
        unknown = incompat & ~erofs.INCOMPAT_CHUNKED_FILE
        if unknown or block_bits != BLOCK_BITS or extra_slots or metadata_block or compression or devices or directory_block_bits:
            raise UnsupportedError(
                f"the tree uses EROFS features that this version does not read (flags {incompat:#x}, blocks of 2^{block_bits} bytes)",
                hint="a newer imagefs may read it",
            )
        if blocks << BLOCK_BITS != len(buffer):
            raise IntegrityError(f"the tree has {len(buffer)} bytes and says that it has {blocks} blocks")
        self._buffer = buffer
        self._end: int = len(buffer)
        self._last_nid: int = (len(buffer) - INODE_SIZE) >> SLOT_BITS
        self.root: int = root
        self.inode_count: int = inodes
        self._data(root, _S_IFDIR)

    # -- inodes ---------------------------------------------------------------------------------------------------------------------------

    def stat(self, nid: int) -> InodeStat:
        """Return what ``stat`` shows of an inode."""
        if not 0 < nid <= self._last_nid:
            raise _outside(nid)
        form, _, mode, size, union, uid, gid, seconds, nanoseconds, nlink = _unpack_inode(self._buffer, nid << SLOT_BITS)
        kind = mode & _S_IFMT
        if form << 16 | kind not in _KNOWN or nanoseconds >= NANOSECONDS or size >= _SIZE_END:
            raise _damaged_inode(nid, form)
        rdev = union if kind in _DEVICES else 0
        return _new_tuple(InodeStat, (nid, mode, nlink, uid, gid, rdev, size, seconds * NANOSECONDS + nanoseconds))

    def bytes_of(self, nid: int) -> tuple[bytes, bytes] | None:
        """Return all that the tree tells of a regular file with an object and one name, as it stands there; None of any other inode.

        Two that are equal are alike. None of it is understood or checked, which is a fifth of the work of asking for each field.
        """
        if not 0 < nid <= self._last_nid:
            raise _outside(nid)
        at = nid << SLOT_BITS
        head = self._buffer[at : at + _INO_AT]
        form, count = _FORM_AND_COUNT.unpack_from(head)
        if form != erofs.FORMAT_CHUNK or self._buffer[at + _NLINK_AT : at + _NLINK_AT + 4] != _ONE:
            return None
        return bytes(head), bytes(self._buffer[at + _INO_END : at + INODE_SIZE + erofs.xattr_size(count)])

    def readlink(self, nid: int) -> bytes:
        """Return a symbolic link's target."""
        data = self._data(nid, _S_IFLNK)
        if not 0 < data.size <= _SYMLINK_MAX:
            raise _damaged(nid, f"a symbolic link of {data.size} bytes")
        return self._read(data)

    def inline(self, nid: int) -> bytes:
        """Return the content of a regular file that has no object; ``b""`` of an empty one."""
        data = self._data(nid, _S_IFREG)
        if data.size > BLOCK_SIZE:
            raise _damaged(nid, f"{data.size} bytes of inlined content")
        return self._read(data)

    def object_of(self, nid: int) -> bytes | None:
        """Return the raw digest of a regular file's object; None if the file has none, or if it is no regular file."""
        form, count, *_ = self._inode(nid)
        if form != erofs.FORMAT_CHUNK:
            return None
        at = (nid << SLOT_BITS) + INODE_SIZE
        if count >= erofs.OBJECT_XATTR_COUNT and at + erofs.OBJECT_XATTRS.size <= self._end:
            head, first, slash, rest = erofs.OBJECT_XATTRS.unpack_from(self._buffer, at)
            text = first + rest
            # unhexlify takes capitals too; a digest has one spelling.
            if head == erofs.OBJECT_HEAD and slash == b"/" and not text.strip(b"0123456789abcdef"):
                return unhexlify(text)
        raise _damaged(nid, "a file with content that names no object")

    def _inode(self, nid: int) -> tuple[int, int, int, int, int]:
        """Return format, attribute count, mode, size and ``i_u`` of an inode that may be in a tree."""
        if not 0 < nid <= self._last_nid:
            raise _outside(nid)
        form, count, mode, size, union, *_ = _unpack_inode(self._buffer, nid << SLOT_BITS)
        if form << 16 | mode & _S_IFMT not in _KNOWN or size >= _SIZE_END:
            raise _damaged_inode(nid, form)
        return form, count, mode, size, union

    def _data(self, nid: int, kind: int) -> _Data:
        """Find the data of an inode that must be of type ``kind`` and not chunk-based, and see that it is in the image."""
        form, count, mode, size, union = self._inode(nid)
        if mode & _S_IFMT != kind or form == erofs.FORMAT_CHUNK:
            raise _damaged(nid, f"mode {mode:#o} where a type of {kind:#o} must be")
        tail = size & (BLOCK_SIZE - 1) if form == erofs.FORMAT_INLINE else 0
        tail_at = (nid << SLOT_BITS) + INODE_SIZE + erofs.xattr_size(count)
        blocks_at = union << BLOCK_BITS
        whole = size - tail
        if (whole and blocks_at + whole > self._end) or (tail and tail_at + tail > self._end):
            raise _damaged(nid, "data outside of the tree")
        if form == erofs.FORMAT_INLINE and not 0 < tail <= BLOCK_SIZE - tail_at % BLOCK_SIZE:
            raise _damaged(nid, "an inlined tail that is empty or crosses a block")
        return _new_tuple(_Data, (size, blocks_at, tail_at, tail))

    def _read(self, data: _Data) -> bytes:
        whole = data.size - data.tail
        return bytes(self._buffer[data.blocks_at : data.blocks_at + whole]) + bytes(self._buffer[data.tail_at : data.tail_at + data.tail])

    # -- directories ----------------------------------------------------------------------------------------------------------------------

    def lookup(self, nid: int, name: bytes) -> int | None:
        """Return the nid of ``name`` in a directory, ``.`` and ``..`` included, or None: a binary search over its blocks, then in one."""
        data = self._directory(nid)
        low, high = 0, (data.size - 1) >> BLOCK_BITS
        while low < high:
            middle = (low + high + 1) >> 1
            at, length, count = self._block(nid, data, middle)
            if self._entry(nid, at, length, count, 0)[1] <= name:
                low = middle
            else:
                high = middle - 1
        at, length, count = self._block(nid, data, low)
        low, high = 0, count
        while low < high:
            middle = (low + high) >> 1
            child, found = self._entry(nid, at, length, count, middle)
            if found == name:
                return child
            if found < name:
                low = middle + 1
            else:
                high = middle
        return None

    def readdir(self, nid: int, cookie: int = 0) -> Iterator[tuple[bytes, int, int, int]]:
        """Yield (name, nid, type, next cookie) of a directory's entries in bytewise order, ``.`` and ``..`` included.

        ``cookie`` says where to begin: 0 at the start, else what came with the entry before; after the last entry's, or one that is no
        position at all, nothing is yielded. The type is a ``DT_`` of readdir(3).
        """
        data = self._directory(nid)
        number, index = cookie >> _INDEX_BITS, cookie & _INDEX_MASK
        count_of_blocks = (data.size + BLOCK_SIZE - 1) >> BLOCK_BITS
        if number < 0:
            number = count_of_blocks
        while number < count_of_blocks:
            at, length, count = self._block(nid, data, number)
            block = bytes(self._buffer[at : at + length])
            names_at = count * DIRENT_SIZE
            last = DIRENT.unpack_from(block, names_at - DIRENT_SIZE)[1]
            if block.find(b"/", names_at) >= 0 or block.find(b"\0", names_at, last) >= 0:
                raise _damaged(nid, "a directory with names that cannot be")
            # Lazily: a caller may take few entries at a time, and come back with a cookie for more.
            rows = DIRENT.iter_unpack(block[index * DIRENT_SIZE : names_at])
            next_rows = DIRENT.iter_unpack(block[(index + 1) * DIRENT_SIZE : names_at])
            ends = chain(map(itemgetter(1), next_rows), (_name_end(block, last),))
            base = number << _INDEX_BITS
            for (child, begin, kind), end in zip(rows, ends, strict=False):
                index += 1
                if not (names_at <= begin < end <= length and end - begin <= NAME_MAX and 0 < kind < 8):
                    raise _damaged(nid, "a damaged directory")
                yield block[begin:end], child, _DTYPES[kind], base + index if index < count else (number + 1) << _INDEX_BITS
            number, index = number + 1, 0

    def _directory(self, nid: int) -> _Data:
        data = self._data(nid, _S_IFDIR)
        if not data.size:
            raise _damaged(nid, "a directory without entries")
        return data

    def _block(self, nid: int, data: _Data, number: int) -> tuple[int, int, int]:
        """Return where a directory's block is, its length in bytes, and how many entries it has."""
        start = number << BLOCK_BITS
        length = min(BLOCK_SIZE, data.size - start)
        at = data.tail_at if data.tail and length < BLOCK_SIZE else data.blocks_at + start
        if length <= DIRENT_SIZE:
            raise _damaged(nid, "a damaged directory")
        # The first name begins where the entries end.
        names_at: int = _NAME_OFFSET.unpack_from(self._buffer, at)[0]
        count, odd = divmod(names_at, DIRENT_SIZE)
        if odd or not count or names_at >= length:
            raise _damaged(nid, "a damaged directory")
        return at, length, count

    def _entry(self, nid: int, at: int, length: int, count: int, index: int) -> tuple[int, bytes]:
        """Return nid and name of one entry of a directory block."""
        where = at + index * DIRENT_SIZE
        if index + 1 < count:
            child, begin, end = _TWO_DIRENTS.unpack_from(self._buffer, where)
        else:
            child, begin, _ = DIRENT.unpack_from(self._buffer, where)
            end = length
        if not count * DIRENT_SIZE <= begin < end <= length:
            raise _damaged(nid, "a damaged directory")
        name = bytes(self._buffer[at + begin : at + end])
        if index + 1 == count:
            name = name[: _name_end(name, 0)]
        return child, name

    # -- extended attributes --------------------------------------------------------------------------------------------------------------

    def xattr_names(self, nid: int) -> list[bytes]:
        """Return the names of an inode's attributes as the image has them: what is there for overlayfs alone is not among them."""
        return [name for index, rest, _ in self._xattrs(nid) if (name := erofs.shown_xattr_name(index, rest)) is not None]

    def xattr(self, nid: int, name: bytes) -> bytes | None:
        """Return the value of one attribute by its name in the image, or None if the inode does not have it."""
        stored = erofs.stored_xattr_name(name)
        if stored is not None:
            for index, rest, value in self._xattrs(nid):
                if (index, rest) == stored:
                    return value
        return None

    def _xattrs(self, nid: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield prefix index, rest of the name and value of all attributes that are stored."""
        form, count, *_ = self._inode(nid)
        if not count or (form == erofs.FORMAT_CHUNK and count == erofs.OBJECT_XATTR_COUNT):
            return  # the usual file: it has what overlayfs needs and no more
        start = (nid << SLOT_BITS) + INODE_SIZE
        size = erofs.xattr_size(count)
        if start + size > self._end:
            raise _damaged(nid, "attributes outside of the tree")
        area = bytes(self._buffer[start : start + size])
        if area[4]:
            raise UnsupportedError("the tree shares extended attributes among inodes, which this version does not read")
        at = erofs.XATTR_HEADER_SIZE
        while at < size:
            name_length, index, value_size = erofs.XATTR_ENTRY.unpack_from(area, at)
            value_at = at + erofs.XATTR_ENTRY.size + name_length
            end = value_at + value_size
            if end > size or index not in erofs.XATTR_PREFIXES:
                raise _damaged(nid, "damaged extended attributes")
            yield index, area[at + erofs.XATTR_ENTRY.size : value_at], area[value_at:end]
            at = (end + 3) & -4


def _name_end(block: bytes, begin: int) -> int:
    """Return where the last name of a block ends: at the padding, or with the block."""
    end = block.find(b"\0", begin)
    return end if end >= 0 else len(block)


def _outside(nid: int) -> ImageFSError:
    return IntegrityError(f"the tree names inode {nid}, which is outside of it")


def _damaged(nid: int, what: str) -> ImageFSError:
    return IntegrityError(f"the tree is damaged at inode {nid}: {what}")


def _damaged_inode(nid: int, form: int) -> ImageFSError:
    if form not in _FORMATS:
        return UnsupportedError(f"inode {nid} has the EROFS format {form:#x}, which trees do not have", hint="a newer imagefs may read it")
    return _damaged(nid, "no inode of a tree")
