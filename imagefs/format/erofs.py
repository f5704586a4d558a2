"""EROFS on disk: the structures and numbers that the tree's writer and reader share.

The source is the Linux kernel's ``fs/erofs/erofs_fs.h``; ``docs/format/tree.md`` says which part of it a tree uses. Little-endian throughout.
"""

import struct
from typing import Final

import google_crc32c

from imagefs.digest import Buffer

BLOCK_SIZE: Final = 4096
BLOCK_BITS: Final = 12
SUPER_OFFSET: Final = 1024
SUPER_MAGIC: Final = 0xE0F5E1E2
SLOT_SIZE: Final = 32
"""A nid counts slots of this many bytes from the start of the metadata, which is the start of the image."""

COMPAT_SB_CHECKSUM: Final = 0x1
COMPAT_MTIME: Final = 0x2
INCOMPAT_CHUNKED_FILE: Final = 0x4

# magic, checksum, feature_compat, blkszbits, extslots, root_nid, inos, build_time, build_time_nsec, blocks, meta_blkaddr, xattr_blkaddr,
# uuid, volume_name, feature_incompat, then fields that are zero in a tree
SUPER: Final = struct.Struct("<IIIBBHQQIIII16s16sI44x")

# format, xattr count, mode, reserved, size, i_u, ino, uid, gid, mtime, mtime_nsec, nlink
INODE: Final = struct.Struct("<HHHHQIIIIqII16x")
INODE_SIZE: Final = INODE.size

LAYOUT_PLAIN: Final = 0
LAYOUT_INLINE: Final = 2
LAYOUT_CHUNK: Final = 4
_EXTENDED: Final = 1


def inode_format(layout: int) -> int:
    """Return ``i_format`` of an extended inode with this data layout."""
    return layout << 1 | _EXTENDED


CHUNK_BITS_MAX: Final = 31
"""Chunks are ``1 << (BLOCK_BITS + n)`` bytes, with ``n`` at most this."""
NULL_ADDRESS: Final = 0xFFFF_FFFF

# nid, name offset, file type, reserved
DIRENT: Final = struct.Struct("<QHBx")

FILE_TYPES: Final = {0o100000: 1, 0o040000: 2, 0o020000: 3, 0o060000: 4, 0o010000: 5, 0o140000: 6, 0o120000: 7}
"""``S_IFMT`` bits to a dirent's file type."""

XATTR_HEADER_SIZE: Final = 12
# name length, prefix index, value size
XATTR_ENTRY: Final = struct.Struct("<BBH")
XATTR_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}

OVERLAY: Final = b"trusted.overlay."
"""overlayfs's own attributes: what a source image has under this prefix is escaped."""
OVERLAY_ESCAPED: Final = b"trusted.overlay.overlay."
METACOPY: Final = b"overlay.metacopy"
REDIRECT: Final = b"overlay.redirect"
"""Names of the two attributes that make a file's data come from its object, without their ``trusted.`` prefix."""


def superblock_checksum(image: Buffer) -> int:
    """Return the CRC32C of the rest of the first block with the checksum field zero, as the kernel computes it: without the last inversion."""
    block = bytearray(image[SUPER_OFFSET : BLOCK_SIZE])
    block[4:8] = bytes(4)
    return int(google_crc32c.value(bytes(block))) ^ 0xFFFF_FFFF
