"""The FUSE handlers: what the kernel asks, answered from the mapped trees and from the fetcher.

Invariants:

- everything but ``read`` is answered at once, without waiting for anything: metadata never queues behind a fetch;
- answers are valid for ever (an image does not change), so the kernel asks once; only the forest's own directories change;
- no state per inode and none per handle that matters (see ``forest`` and ``reading``);
- one ``EntryAttributes`` is filled again and again: pyfuse3 copies it into its reply before the next request can be read, because
  handlers do not wait between filling and returning it.

The attributes ``user.imagefs.object``, ``.tier`` and ``.frames`` of a regular file can be asked for and are not listed: tools that
copy all attributes (``cp -a``, ``rsync -X``, tar) must not write them into what they make.
"""

import errno
import os
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pyfuse3

from imagefs.cache.layout import ObjectRecord
from imagefs.digest import Buffer
from imagefs.fuse.forest import (
    NID_MASK,
    OBJECT_BIT,
    OBJECTS,
    OBJECTS_NAME,
    ROOT,
    SHARDS,
    SLOT_SHIFT,
    TREES,
    TREES_NAME,
    Forest,
    Slot,
)
from imagefs.fuse.guard import Requests, handler
from imagefs.fuse.reading import Reading
from imagefs.fuse.refusals import Refusals

FOREVER: Final = 10 * 365 * 86400.0
"""Seconds that an answer is valid. The kernel adds it to its clock, so not a number that would not fit."""

_MAGIC: Final = b"user.imagefs."
_S_IFMT: Final = 0o170000
_S_IFREG: Final = 0o100000
_S_IFDIR: Final = 0o040000
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
_BLOCK: Final = 4096
_NAME_MAX: Final = 255
_OWN: Final = {TREES_NAME: TREES, OBJECTS_NAME: OBJECTS}
_SHARD_NAME: Final = re.compile(rb"[0-9a-f]{2}")
_OBJECT_NAME: Final = re.compile(rb"[0-9a-f]{62}")


class ImageOperations(Refusals):
    """Serves a forest."""

    supports_dot_lookup = False
    enable_acl = True  # the kernel reads an image's ACLs and enforces them together with the modes
    enable_writeback_cache = False

    def __init__(self, forest: Forest, reading: Reading, requests: Requests, started: Callable[[], None]) -> None:
        """``started`` is told when the kernel and pyfuse3 have agreed on a protocol."""
        super().__init__()
        self._forest = forest
        self._slots = forest.slots
        self._reading = reading
        self._readers = reading.readers
        self._starts = reading.starts
        self.requests = requests
        self._started = started
        self._entry = pyfuse3.EntryAttributes()
        self._entry.entry_timeout = self._entry.attr_timeout = FOREVER
        self._entry.st_blksize = _BLOCK
        self._absent = pyfuse3.EntryAttributes()
        self._absent.st_ino = 0
        self._absent.entry_timeout = FOREVER
        self._own = pyfuse3.EntryAttributes()
        self._own.entry_timeout = self._own.attr_timeout = 0
        self._own.st_mode = _S_IFDIR | 0o555
        self._own.st_nlink = 2
        # The directories of objects/ are always there. They can be searched, not listed: that is nobody's way to an image.
        self._shard = pyfuse3.EntryAttributes()
        self._shard.entry_timeout = self._shard.attr_timeout = FOREVER
        self._shard.st_mode = _S_IFDIR | 0o111
        self._shard.st_nlink = 2
        self._object = pyfuse3.EntryAttributes()
        self._object.entry_timeout = self._object.attr_timeout = FOREVER
        self._object.st_mode = _S_IFREG | 0o444
        self._object.st_nlink = 1
        self._object.st_blksize = _BLOCK

    def init(self) -> None:
        """Note that the session is on. Called by pyfuse3."""
        self._started()

    # -- finding ----------------------------------------------------------------------------------------------------------------------

    def _at(self, node: int) -> tuple[Slot, int]:
        """Return where a nodeid is; ESTALE for one of an image that is no longer mounted."""
        slot = self._slots.get(node >> SLOT_SHIFT)
        if slot is not None:
            return slot, node & NID_MASK
        if node == ROOT and self._forest.alone is not None:
            return self._forest.alone, self._forest.alone.root_nid
        raise pyfuse3.FUSEError(errno.ESTALE)

    def _is_own(self, node: int) -> bool:
        return not node >> SLOT_SHIFT and self._forest.alone is None

    def _fill(self, slot: Slot, nid: int) -> pyfuse3.EntryAttributes:
        """Fill the one instance; see the module's last invariant. Few lines, as a walk comes here for each file."""
        entry = self._entry
        _, mode, nlink, uid, gid, rdev, size, mtime = slot.tree.stat(nid)
        entry.st_ino = slot.base | nid if nid != slot.root_nid else slot.root_node
        entry.st_mode = mode
        entry.st_nlink = nlink
        entry.st_uid = uid
        entry.st_gid = gid
        entry.st_rdev = rdev
        entry.st_size = size
        entry.st_blocks = (size + 511) >> 9
        entry.st_atime_ns = mtime
        entry.st_mtime_ns = mtime
        entry.st_ctime_ns = mtime
        return entry

    def _fill_own(self, node: int) -> pyfuse3.EntryAttributes:
        entry = self._shard if node >= OBJECTS else self._own
        entry.st_ino = node
        return entry

    def _record_of(self, node: int) -> ObjectRecord:
        """Return the object that a nodeid names; ESTALE for one that no mounted image has any more."""
        record = self._reading.known(node)
        if record is None:
            found = self._forest.object_at(node)
            if found is None:
                raise pyfuse3.FUSEError(errno.ESTALE)
            record = self._reading.object(node, *found)
        assert not isinstance(record, bytes)
        return record

    def _fill_object(self, node: int) -> pyfuse3.EntryAttributes:
        entry = self._object
        entry.st_ino = node
        entry.st_size = self._record_of(node).size
        entry.st_blocks = (entry.st_size + 511) >> 9
        return entry

    @handler
    def lookup(self, parent: int, name: bytes, _: Any) -> pyfuse3.EntryAttributes:
        """Answer a name with its file, or with the news that there is none."""
        if self._is_own(parent):
            return self._lookup_own(parent, name)
        if len(name) > _NAME_MAX:
            # FUSE's own limit is 1,024.
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        slot, nid = self._at(parent)
        found = slot.tree.lookup(nid, name)
        return self._absent if found is None else self._fill(slot, found)

    def _lookup_own(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        if parent == ROOT:
            if name in _OWN:
                return self._fill_own(_OWN[name])
        elif parent >= OBJECTS:
            return self._lookup_object(parent, name)
        elif (slot := self._forest.by_name.get(name)) is not None:
            return self._fill(slot, slot.root_nid)
        # Not remembered: it may be mounted in a moment.
        raise pyfuse3.FUSEError(errno.ENOENT)

    def _lookup_object(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Answer ``ab`` in ``objects``, or the rest of a digest in ``ab``; as above, what is not there may come."""
        if parent == OBJECTS:
            if _SHARD_NAME.fullmatch(name):
                return self._fill_own(SHARDS + int(name, 16))
        elif _OBJECT_NAME.fullmatch(name):
            node = self._forest.find_object(bytes((parent - SHARDS,)) + bytes.fromhex(name.decode()))
            if node is not None:
                return self._fill_object(node)
        raise pyfuse3.FUSEError(errno.ENOENT)

    @handler
    def getattr(self, node: int, _: Any) -> pyfuse3.EntryAttributes:
        """Answer ``stat``."""
        if node & OBJECT_BIT:
            return self._fill_object(node)
        return self._fill_own(node) if self._is_own(node) else self._fill(*self._at(node))

    @handler
    def readlink(self, node: int, _: Any) -> bytes:
        """Answer with a symbolic link's target."""
        slot, nid = self._at(node)
        return slot.tree.readlink(nid)

    def forget(self, inode_list: Any) -> None:
        """Nothing is held per inode, so there is nothing to forget.

        A plain function: pyfuse3 waits only for what is not None.
        """

    # -- directories ------------------------------------------------------------------------------------------------------------------

    @handler
    def opendir(self, node: int, _: Any) -> int:
        """Give the nodeid as the handle."""
        return node

    @handler
    def readdir(self, node: int, position: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory from ``position`` on, with all attributes, as far as the kernel's buffer goes."""
        if self._is_own(node):
            self._list_own(node, position, token)
            return
        slot, nid = self._at(node)
        reply, fill = pyfuse3.readdir_reply, self._fill
        for name, child, _, following in slot.tree.readdir(nid, position):
            if not reply(token, name, fill(slot, child), following):
                return

    def _list_own(self, node: int, position: int, token: pyfuse3.ReaddirToken) -> None:
        if node == ROOT:
            for number, (name, child) in enumerate(_OWN.items(), 1):
                if number > position and not pyfuse3.readdir_reply(token, name, self._fill_own(child), number):
                    return
            return
        if node != TREES:
            return
        # By slot number, so that a position means the same when images come and go.
        for number in sorted(number for number in self._slots if number > position):
            slot = self._slots[number]
            if not pyfuse3.readdir_reply(token, slot.name, self._fill(slot, slot.root_nid), number):
                return

    @handler
    def releasedir(self, fh: int) -> None:
        """Nothing is held."""

    # -- files ------------------------------------------------------------------------------------------------------------------------

    @handler
    def open(self, node: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Give the nodeid as the handle; what the kernel has of the file stays valid."""
        if flags & _WRITING:
            raise pyfuse3.FUSEError(errno.EROFS)
        if node & OBJECT_BIT:
            record = self._record_of(node)
            again = self._forest.opened(node)
            self._forest.late_opens += self._reading.is_native(record)
            if self._starts.running:
                self._reading.opened_object(record, ctx.pid, again=again)
        else:
            slot, nid = self._at(node)
            slot.opens += 1
            if self._starts.running:
                self._reading.opened(node, slot, nid, ctx.pid)
        self._readers.opened(node, ctx.pid)
        return pyfuse3.FileInfo(fh=node, keep_cache=True)

    @handler
    def read(self, fh: int, offset: int, size: int) -> Buffer | Coroutine[Any, Any, Buffer]:
        """Return exactly what was asked for, fewer bytes only at the end of the file."""
        reading = self._reading
        record = reading.known(fh)
        if record is None:
            record = self._record_of(fh) if fh & OBJECT_BIT else reading.record(fh, *self._at(fh))
        return reading.read(record, offset, size)

    @handler
    def release(self, fh: int) -> None:
        """Count the close."""
        if fh & OBJECT_BIT:
            self._forest.released(fh)
        elif (found := self._forest.locate(fh)) is not None:
            found[0].opens -= 1

    @handler
    def flush(self, fh: int) -> None:
        """Let the kernel never ask again."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @handler
    def fsync(self, fh: int, _: bool) -> None:  # pyfuse3's signature
        """Nothing is ever dirty."""

    @handler
    def fsyncdir(self, fh: int, _: bool) -> None:  # pyfuse3's signature
        """Nothing is ever dirty."""

    # -- the rest ---------------------------------------------------------------------------------------------------------------------

    @handler
    def access(self, node: int, mode: int, _: Any) -> bool:
        """The kernel decides by modes and ACLs (``default_permissions``); only writing is always refused."""
        if mode & os.W_OK:
            raise pyfuse3.FUSEError(errno.EROFS)
        return True

    @handler
    def statfs(self, _: Any) -> pyfuse3.StatvfsData:
        """Say how much is mounted, and that nothing is free."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK
        data.f_namemax = _NAME_MAX
        for slot in self._slots.values():
            data.f_blocks += (slot.image.manifest.bytes + _BLOCK - 1) // _BLOCK
            data.f_files += slot.tree.inode_count
        return data

    @handler
    def getxattr(self, node: int, name: bytes, _: Any) -> bytes:
        """Answer with an attribute of the image, or with one of our own."""
        if self._is_own(node):
            raise pyfuse3.FUSEError(errno.ENODATA)
        if node & OBJECT_BIT:
            return self._object_attribute(node, name)
        slot, nid = self._at(node)
        value = self._own_attribute(slot, nid, node, name) if name.startswith(_MAGIC) else None
        if value is None:
            value = slot.tree.xattr(nid, name)
        if value is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return value

    def _object_attribute(self, node: int, name: bytes) -> bytes:
        value = self._reading.attribute(self._record_of(node), name[len(_MAGIC) :]) if name.startswith(_MAGIC) else None
        if value is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return value

    def _own_attribute(self, slot: Slot, nid: int, node: int, name: bytes) -> bytes | None:
        if slot.tree.stat(nid).mode & _S_IFMT != _S_IFREG:
            return None
        return self._reading.attribute(self._reading.record(node, slot, nid), name[len(_MAGIC) :])

    @handler
    def listxattr(self, node: int, _: Any) -> list[bytes]:
        """List the image's attributes; ours are not listed."""
        if node & OBJECT_BIT or self._is_own(node):
            return []
        slot, nid = self._at(node)
        return slot.tree.xattr_names(nid)
