"""EROFS on disk: the structures, numbers and names that the tree's writer and reader share.

The source is the Linux kernel's ``fs/erofs/erofs_fs.h``; ``docs/format/tree.md`` says which part of it a tree uses, byte by byte.
Everything is little-endian. What does not live here: laying a tree out (``erofs_writer``), and finding one's way in it (``erofs_reader``).
"""

import struct
from typing import Final

import google_crc32c

from imagefs.digest import Buffer

BLOCK_BITS: Final = 12
BLOCK_SIZE: Final = 1 << BLOCK_BITS

# -- superblock ---------------------------------------------------------------------------------------------------------------------------

SUPER_OFFSET: Final = 1024
SUPER_MAGIC: Final = 0xE0F5_E1E2
COMPAT_SB_CHECKSUM: Final = 0x1
COMPAT_MTIME: Final = 0x2
INCOMPAT_CHUNKED_FILE: Final = 0x4

# magic, checksum, feature_compat, blkszbits, extslots, root_nid, inos, build_time, build_time_nsec, blocks, meta_blkaddr, xattr_blkaddr,
# uuid, volume_name, feature_incompat, compression algorithms, extra devices, device table slot, dirblkbits, then what is zero in a tree
SUPER: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHB37x")

METADATA_START: Final = SUPER_OFFSET + SUPER.size
"""Byte offset of the first inode, which is the root."""

# -- inodes -------------------------------------------------------------------------------------------------------------------------------

SLOT_BITS: Final = 5
SLOT_SIZE: Final = 1 << SLOT_BITS
"""An inode's nid is its byte offset in the image divided by this."""

# format, xattr count, mode, reserved, size, i_u, ino, uid, gid, mtime seconds, mtime nanoseconds, nlink
INODE: Final = struct.Struct("<HHHHQIIIIqII16x")
INODE_SIZE: Final = INODE.size

_EXTENDED: Final = 1
FORMAT_PLAIN: Final = 0 << 1 | _EXTENDED
"""``i_format`` of an extended inode whose data, if any, lies in blocks from ``i_u`` on."""
FORMAT_INLINE: Final = 2 << 1 | _EXTENDED
"""The same, but the last, partial block of data lies behind the inode."""
FORMAT_CHUNK: Final = 4 << 1 | _EXTENDED
"""A map of chunks lies behind the inode; ``i_u`` tells their size."""

CHUNK_BITS_MAX: Final = 31
"""A chunk is ``1 << (BLOCK_BITS + n)`` bytes, with ``n`` at most this."""
NULL_ADDRESS: Final = b"\xff\xff\xff\xff"
"""A chunk map's entry for a chunk that has no data in the image."""

NANOSECONDS: Final = 1_000_000_000
FILE_TYPES: Final = {0o100000: 1, 0o040000: 2, 0o020000: 3, 0o060000: 4, 0o010000: 5, 0o140000: 6, 0o120000: 7}
"""``S_IFMT`` bits to a dirent's file type."""

# nid, name offset in the block, file type, reserved
DIRENT: Final = struct.Struct("<QHBx")
DIRENT_SIZE: Final = DIRENT.size
NAME_MAX: Final = 255

# -- extended attributes ------------------------------------------------------------------------------------------------------------------

XATTR_HEADER_SIZE: Final = 12
# name length, prefix index, value size
XATTR_ENTRY: Final = struct.Struct("<BBH")
XATTR_VALUE_MAX: Final = 0xFFFF
XATTR_COUNT_MAX: Final = 0xFFFF
XATTR_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
"""Prefix index to the prefix that the stored name goes without. The two ACLs are whole names."""

OVERLAY: Final = b"trusted.overlay."
"""overlayfs's own attributes. What a source image has under this prefix is kept under ``OVERLAY_ESCAPED``, as overlayfs documents."""
OVERLAY_ESCAPED: Final = b"trusted.overlay.overlay."


def xattr_entry(index: int, rest: bytes, value: bytes) -> bytes:
    """Return one attribute as it is stored, padded to 4 bytes. ``rest`` is the name without its prefix."""
    raw = XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return raw + bytes(-len(raw) % 4)


def xattr_count(area: int) -> int:
    """Return ``i_xattr_icount`` of an attribute area of ``area`` bytes, header included; 0 for none."""
    return (area - XATTR_HEADER_SIZE) // 4 + 1 if area else 0


def xattr_size(count: int) -> int:
    """Return the bytes of the attribute area that ``i_xattr_icount`` tells."""
    return (count - 1) * 4 + XATTR_HEADER_SIZE if count else 0


def stored_xattr_name(name: bytes) -> tuple[int, bytes] | None:
    """Return prefix index and rest of an attribute as the image names it, escaped; None for a name that EROFS cannot hold."""
    if name.startswith(OVERLAY):
        name = OVERLAY_ESCAPED + name[len(OVERLAY) :]
    for index, prefix in XATTR_PREFIXES.items():
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            # An ACL's name is its prefix and no more; all others have something behind it.
            return (index, rest) if bool(rest) == prefix.endswith(b".") else None
    return None


def shown_xattr_name(index: int, rest: bytes) -> bytes | None:
    """Return an attribute's name as the image has it, unescaped; None for one that is there for overlayfs."""
    name = XATTR_PREFIXES[index] + rest
    if not name.startswith(OVERLAY):
        return name
    return OVERLAY + name[len(OVERLAY_ESCAPED) :] if name.startswith(OVERLAY_ESCAPED) else None


# -- files with an object -----------------------------------------------------------------------------------------------------------------

OBJECT_HEAD: Final = (
    bytes(XATTR_HEADER_SIZE)
    + xattr_entry(4, b"overlay.metacopy", b"")
    + XATTR_ENTRY.pack(len(b"overlay.redirect"), 4, len("/00/") + 62)
    + b"overlay.redirect/"
)
"""How the attribute area of every file with an object begins: overlayfs takes the data from ``/<2 hex>/<62 hex>``, the object's path."""

OBJECT_XATTRS: Final = struct.Struct(f"<{len(OBJECT_HEAD)}s2sc62s2x")
"""That whole: ``OBJECT_HEAD``, two hex digits, a slash, the other 62."""
OBJECT_XATTR_COUNT: Final = xattr_count(OBJECT_XATTRS.size)


def superblock_checksum(block: Buffer) -> int:
    """Return the CRC32C of the superblock and what follows it in the first block, with the checksum field zero.

    As the kernel computes it: seeded with all ones, and without the last inversion.
    """
    covered = bytearray(block[SUPER_OFFSET:BLOCK_SIZE])
    covered[4:8] = bytes(4)
    return int(google_crc32c.value(bytes(covered))) ^ 0xFFFF_FFFF
