"""Writes a tree: an EROFS image with all metadata and no file data but tiny inlined files.

Invariants: the same inodes give the same bytes (nothing of time, host or memory order gets in; the uuid is a digest of the rest); the
image is what the kernel's driver and ``fsck.erofs`` accept; every inode of a directory lies behind the other, so listing a directory
with attributes reads one run. No recursion: depth costs memory, not stack.

Three passes: number the inodes and count their links; give each its place, which needs sizes alone; write.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from stat import S_IFMT, S_ISBLK, S_ISCHR, S_ISDIR, S_ISLNK, S_ISREG
from typing import Final

from imagefs.digest import DIGEST_SIZE, digest_of
from imagefs.errors import LimitError, UnsupportedError, UsageError
from imagefs.format import erofs
from imagefs.format.erofs import BLOCK_SIZE, DIRENT, INODE, INODE_SIZE, SLOT_SIZE
from imagefs.format.tree import INLINE_MAX, Inode

_TAIL_MAX: Final = BLOCK_SIZE - INODE_SIZE
"""A tail of this size or less can always be placed within one block."""

_SYMLINK_MAX: Final = 4095
_XATTR_VALUE_MAX: Final = 0xFFFF
_XATTR_COUNT_MAX: Final = 0xFFFF
_CHUNK_FORMAT: Final = erofs.inode_format(erofs.LAYOUT_CHUNK)
_INLINE_FORMAT: Final = erofs.inode_format(erofs.LAYOUT_INLINE)
_PLAIN_FORMAT: Final = erofs.inode_format(erofs.LAYOUT_PLAIN)
_DOT: Final = b"."
_DOTDOT: Final = b".."


@dataclass(slots=True)
class _Plan:
    """What is known of the inodes, by number; number 0 is the root. ``places`` are byte offsets of inodes, ``blocks`` of out-of-line data in blocks."""

    inodes: list[Inode] = field(default_factory=list)
    links: list[int] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)
    names: dict[int, list[tuple[bytes, int]]] = field(default_factory=dict)
    numbers: dict[Inode, int] = field(default_factory=dict)
    xattrs: list[bytes] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    blocks: dict[int, int] = field(default_factory=dict)


def write_tree(root: Inode) -> bytearray:
    """Return the EROFS image of the tree under ``root``, a directory.

    ``UsageError`` for a tree that breaks the model's rules; ``LimitError`` for what EROFS cannot hold; ``UnsupportedError`` for an
    extended attribute in a namespace that it does not have.
    """
    if not S_ISDIR(root.mode):
        raise UsageError("the root of a tree is a directory")
    plan = _number(root)
    total = _place(plan)
    image = bytearray(total)
    _write_inodes(plan, image)
    _write_super(plan, image)
    return image


def _number(root: Inode) -> _Plan:
    """Give each inode a number, directory by directory, and count links."""
    plan = _Plan()
    inodes, links, numbers = plan.inodes, plan.links, plan.numbers
    inodes.append(root)
    links.append(2)
    numbers[root] = 0
    plan.parents[0] = 0
    pending = [0]
    while pending:
        directory = pending.pop()
        children = inodes[directory].children or {}
        names: list[tuple[bytes, int]] = [(_DOT, directory), (_DOTDOT, plan.parents[directory])]
        below = []
        for name in sorted(children):
            child = children[name]
            if not name or len(name) > 255 or b"/" in name or b"\0" in name or name in (_DOT, _DOTDOT):
                raise UsageError(f"not a file name: {name[:300]!r}")
            number = numbers.get(child)
            if number is None:
                number = numbers[child] = len(inodes)
                inodes.append(child)
                links.append(1)
                if S_ISDIR(child.mode):
                    links[number] = 2
                    links[directory] += 1
                    plan.parents[number] = directory
                    below.append(number)
            elif S_ISDIR(child.mode):
                raise UsageError(f"directory {name!r} has two names")
            else:
                links[number] += 1
            names.append((name, number))
        names.sort()
        plan.names[directory] = names
        # The last pushed is the first popped: reversed, so that subdirectories come in the order of their names.
        pending += reversed(below)
    plan.xattrs = [_xattr_area(inode) for inode in inodes]
    return plan


def _place(plan: _Plan) -> int:
    """Give each inode its offset and its out-of-line blocks; return the size of the image in bytes."""
    cursor = erofs.SUPER_OFFSET + erofs.SUPER.size
    outside: list[tuple[int, int]] = []
    for number, (inode, xattrs) in enumerate(zip(plan.inodes, plan.xattrs, strict=True)):
        head = INODE_SIZE + len(xattrs)
        size, tail, mode = _data_size(plan, number), 0, inode.mode
        if S_ISREG(mode) and inode.object is not None:
            body = head + 4 * _chunk_count(size)
        else:
            tail = size % BLOCK_SIZE
            blocks = size // BLOCK_SIZE
            if tail > _TAIL_MAX:
                tail, blocks = 0, blocks + 1
            if blocks:
                outside.append((number, blocks))
            body = head + tail
        if cursor % BLOCK_SIZE > BLOCK_SIZE - INODE_SIZE:
            cursor += SLOT_SIZE
        if tail:
            # A tail must lie within one block.
            while (cursor + head) // BLOCK_SIZE != (cursor + body - 1) // BLOCK_SIZE or cursor % BLOCK_SIZE > BLOCK_SIZE - INODE_SIZE:
                cursor += SLOT_SIZE
        plan.places.append(cursor)
        cursor = (cursor + body + SLOT_SIZE - 1) & -SLOT_SIZE
    block = (cursor + BLOCK_SIZE - 1) // BLOCK_SIZE
    for number, count in outside:
        plan.blocks[number] = block
        block += count
    if block >= erofs.NULL_ADDRESS:
        raise LimitError("the tree is too large for EROFS")
    return block * BLOCK_SIZE


def _data_size(plan: _Plan, number: int) -> int:
    """Return ``i_size``: of a directory, its dirent blocks; each but the last counts whole."""
    inode = plan.inodes[number]
    mode = inode.mode
    if S_ISREG(mode):
        if inode.object is None:
            return len(inode.inline or b"")
        return inode.size
    if S_ISDIR(mode):
        blocks, used = 0, 0
        for name, _ in plan.names[number]:
            need = DIRENT.size + len(name)
            if used + need > BLOCK_SIZE:
                blocks, used = blocks + 1, 0
            used += need
        return blocks * BLOCK_SIZE + used
    if S_ISLNK(mode):
        return len(inode.target)
    return 0


def _chunk_bits(size: int) -> int:
    """Return how many bits a chunk has beyond a block's, so that one chunk holds the file where EROFS can have it."""
    return min(max((size - 1).bit_length() - erofs.BLOCK_BITS, 0), erofs.CHUNK_BITS_MAX)


def _chunk_count(size: int) -> int:
    bits = erofs.BLOCK_BITS + _chunk_bits(size)
    return (size + (1 << bits) - 1) >> bits


def _write_inodes(plan: _Plan, image: bytearray) -> None:
    places = plan.places
    for number, inode in enumerate(plan.inodes):
        place, xattrs, mode = places[number], plan.xattrs[number], inode.mode
        size = _data_size(plan, number)
        data: bytes = b""
        layout, union = _PLAIN_FORMAT, 0
        if S_ISREG(mode):
            if inode.object is not None:
                layout, union = _CHUNK_FORMAT, _chunk_bits(size)
                data = b"\xff\xff\xff\xff" * _chunk_count(size)
            else:
                data = inode.inline or b""
        elif S_ISDIR(mode):
            data = _directory(plan, number)
        elif S_ISLNK(mode):
            data = inode.target
        elif S_ISCHR(mode) or S_ISBLK(mode):
            union = _device(inode.rdev)
        if data and layout != _CHUNK_FORMAT:
            tail = size % BLOCK_SIZE
            if tail > _TAIL_MAX:
                tail = 0
            union = plan.blocks.get(number, 0)
            if union:
                image[union * BLOCK_SIZE : union * BLOCK_SIZE + size - tail] = data[: size - tail]
            if tail:
                layout, data = _INLINE_FORMAT, data[size - tail :]
            else:
                data = b""
        seconds, nanoseconds = divmod(inode.mtime_ns, 1_000_000_000)
        count = (len(xattrs) - erofs.XATTR_HEADER_SIZE) // 4 + 1 if xattrs else 0
        INODE.pack_into(
            image, place, layout, count, mode, 0, size, union, number + 1, inode.uid, inode.gid, seconds, nanoseconds, plan.links[number]
        )
        place += INODE_SIZE
        if xattrs or data:
            image[place : place + len(xattrs) + len(data)] = xattrs + data


def _directory(plan: _Plan, number: int) -> bytes:
    """Return a directory's dirent blocks; all but the last are padded to a block."""
    blocks: list[bytes] = []
    run: list[tuple[bytes, int]] = []
    used = 0
    for item in plan.names[number]:
        need = DIRENT.size + len(item[0])
        if used + need > BLOCK_SIZE:
            blocks.append(_dirents(plan, run).ljust(BLOCK_SIZE, b"\0"))
            run, used = [], 0
        run.append(item)
        used += need
    blocks.append(_dirents(plan, run))
    return b"".join(blocks)


def _dirents(plan: _Plan, run: list[tuple[bytes, int]]) -> bytes:
    table = bytearray(DIRENT.size * len(run))
    name_offset = len(table)
    inodes, places = plan.inodes, plan.places
    for index, (name, number) in enumerate(run):
        DIRENT.pack_into(table, index * DIRENT.size, places[number] // SLOT_SIZE, name_offset, erofs.FILE_TYPES[S_IFMT(inodes[number].mode)])
        name_offset += len(name)
    return bytes(table) + b"".join(name for name, _ in run)


def _write_super(plan: _Plan, image: bytearray) -> None:
    root_nid = plan.places[0] // SLOT_SIZE
    fields = [erofs.SUPER_MAGIC, 0, erofs.COMPAT_SB_CHECKSUM | erofs.COMPAT_MTIME, erofs.BLOCK_BITS, 0, root_nid, len(plan.inodes), 0, 0]
    fields += [len(image) // BLOCK_SIZE, 0, 0]

    def pack(uuid: bytes, checksum: int) -> None:
        fields[1] = checksum
        erofs.SUPER.pack_into(image, erofs.SUPER_OFFSET, *fields, uuid, b"", erofs.INCOMPAT_CHUNKED_FILE)

    pack(bytes(16), 0)
    uuid = digest_of(image)[:16]
    pack(uuid, 0)
    pack(uuid, erofs.superblock_checksum(image))


def _device(rdev: int) -> int:
    """Encode a device number as the kernel's ``new_encode_dev`` does: 12 bits of major, 20 of minor."""
    major, minor = os.major(rdev), os.minor(rdev)
    if major >= 1 << 12 or minor >= 1 << 20:
        raise LimitError(f"device {major}:{minor} does not fit the kernel's numbers")
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


# -- extended attributes ------------------------------------------------------------------------------------------------------------------


def _xattr_area(inode: Inode) -> bytes:
    """Return an inode's inline attributes with their header, or nothing."""
    _check(inode)
    entries: list[bytes] = []
    if inode.object is not None:
        name = inode.object.hex()
        entries = [_METACOPY_ENTRY, _entry(4, erofs.REDIRECT, f"/{name[:2]}/{name[2:]}".encode())]
    if inode.xattrs:
        entries += _own_entries(inode.xattrs.items())
    if not entries:
        return b""
    area = bytes(erofs.XATTR_HEADER_SIZE) + b"".join(entries)
    if (len(area) - erofs.XATTR_HEADER_SIZE) // 4 + 1 > _XATTR_COUNT_MAX:
        raise LimitError(f"extended attributes of {len(area)} bytes on one file: EROFS holds 256 KiB")
    return area


def _own_entries(xattrs: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    entries = []
    for name, value in sorted(xattrs):
        if len(value) > _XATTR_VALUE_MAX:
            raise LimitError(f"extended attribute {name!r} has {len(value)} bytes: EROFS holds {_XATTR_VALUE_MAX}")
        full = erofs.OVERLAY_ESCAPED + name[len(erofs.OVERLAY) :] if name.startswith(erofs.OVERLAY) else name
        for index, prefix in erofs.XATTR_PREFIXES.items():
            exact = not prefix.endswith(b".")
            if full == prefix if exact else full.startswith(prefix):
                rest = full[len(prefix) :]
                break
        else:
            raise UnsupportedError(f"extended attribute {name!r}: EROFS has user.*, trusted.*, security.* and POSIX ACLs only")
        if len(rest) > 255 or (not rest and not exact):
            raise LimitError(f"not a name for an extended attribute: {name[:300]!r}")
        entries.append(_entry(index, rest, value))
    return entries


def _entry(index: int, name: bytes, value: bytes) -> bytes:
    raw = erofs.XATTR_ENTRY.pack(len(name), index, len(value)) + name + value
    return raw + bytes(-len(raw) % 4)


_METACOPY_ENTRY: Final = _entry(4, erofs.METACOPY, b"")


def _check(inode: Inode) -> None:
    """Refuse an inode that breaks the model's rules."""
    mode = inode.mode
    if not (0 <= inode.uid < 1 << 32 and 0 <= inode.gid < 1 << 32):
        raise LimitError(f"owner {inode.uid}:{inode.gid} does not fit 32 bits")
    if S_IFMT(mode) not in erofs.FILE_TYPES or mode >> 16:
        raise UsageError(f"no file has the mode {mode:#o}")
    if inode.object is not None and (not S_ISREG(mode) or len(inode.object) != DIGEST_SIZE or not 0 < inode.size < 1 << 63):
        raise UsageError("only a regular file with content has an object")
    if inode.inline is not None and len(inode.inline) > INLINE_MAX:
        raise UsageError(f"content of {len(inode.inline)} bytes is too long to be inlined")
    if S_ISLNK(mode) and not 0 < len(inode.target) <= _SYMLINK_MAX:
        raise UsageError(f"a symbolic link's target of {len(inode.target)} bytes")
