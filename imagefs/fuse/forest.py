"""Which images the FUSE mount shows, and how nodeids name their files.

A nodeid is a pure function of what is mounted. That of an image's file is ``slot << SLOT_SHIFT | nid``: slots are handed out and kept by
``imagefs.mount.table``, nids are in the tree. That of an object, below ``objects/``, is the beginning of its digest, whichever image has
it. So nothing is held per inode: there are no lookup counts to keep (``forget`` has nothing to free), and another process with the same
table answers the same requests in the same way. Nodeids below ``1 << SLOT_SHIFT`` are the forest's own directories: ``ROOT``, ``TREES``,
``OBJECTS`` and its 256 (``objects/ab``); or, where one image is the whole mount, its root directory.

Two objects whose digests begin alike can be made on purpose, with 2^31 attempts. Where both are mounted neither is shown.

All of it belongs to the trio thread. What does not live here: the bind mounts that show a tree somewhere.
"""

from collections.abc import Callable
from typing import Final

from imagefs.cache.image import Image
from imagefs.format.objectmap import ObjectRow

SLOT_SHIFT: Final = 40
"""Bits of a nid: a tree of 32 TiB."""

NID_MASK: Final = (1 << SLOT_SHIFT) - 1
ROOT: Final = 1
TREES: Final = 2
TREES_NAME: Final = b"trees"
OBJECTS: Final = 3
OBJECTS_NAME: Final = b"objects"
SHARDS: Final = 256
"""The first of the directories below ``objects/``."""

OBJECT_BIT: Final = 1 << 63
"""What a nodeid has that names an object."""


_SEEN_MAX: Final = 1 << 18


class Slot:
    """An image's place in the forest. ``opens`` counts its open files, which a lazy unmount leaves behind."""

    __slots__ = ("base", "image", "name", "number", "opens", "root_nid", "root_node", "tree")

    def __init__(self, number: int, image: Image, *, is_root: bool) -> None:
        """``is_root``: the image's root directory is the root of the whole mount."""
        self.number = number
        self.name = image.name.encode()
        self.image = image
        self.tree = image.tree
        self.base = number << SLOT_SHIFT
        self.root_nid = image.tree.root
        self.root_node = ROOT if is_root else self.base | self.root_nid
        self.opens = 0


class Forest:
    """The images that are mounted. ``late_opens`` counts opens of objects that the kernel could have had from SSD."""

    __slots__ = ("_opens", "_seen", "alone", "by_name", "late_opens", "slots")

    def __init__(self) -> None:
        """Start without images."""
        self.slots: dict[int, Slot] = {}
        self.by_name: dict[bytes, Slot] = {}
        self.alone: Slot | None = None
        self.late_opens = 0
        # How often objects are open, by nodeid.
        self._opens: dict[int, int] = {}
        # Those that were, since this was asked for.
        self._seen: set[int] = set()

    def add(self, number: int, image: Image) -> Slot:
        """Show an image as ``trees/<manifest>``."""
        return self._add(Slot(number, image, is_root=False))

    def add_alone(self, number: int, image: Image) -> Slot:
        """Show an image as the whole mount."""
        self.alone = self._add(Slot(number, image, is_root=True))
        return self.alone

    def _add(self, slot: Slot) -> Slot:
        if slot.number in self.slots or slot.name in self.by_name or not 0 < slot.number < 1 << 23:
            raise ValueError(f"slot {slot.number} cannot be taken")
        self.slots[slot.number] = slot
        self.by_name[slot.name] = slot
        return slot

    def drop(self, slot: Slot) -> None:
        """Take an image out: requests for its nodeids are answered ESTALE from now on."""
        self.slots.pop(slot.number, None)
        self.by_name.pop(slot.name, None)

    def locate(self, node: int) -> tuple[Slot, int] | None:
        """Return the slot and nid that a nodeid names; None for the forest's own, and for images that are gone."""
        slot = self.slots.get(node >> SLOT_SHIFT)
        if slot is not None:
            return slot, node & NID_MASK
        if node == ROOT and self.alone is not None:
            return self.alone, self.alone.root_nid
        return None

    # -- objects ----------------------------------------------------------------------------------------------------------------------

    def find_object(self, digest: bytes) -> int | None:
        """Return the nodeid of an object; None if no image has it, or another one whose digest begins alike."""
        node = object_node(digest)
        found = self.object_at(node)
        return node if found is not None and found[1].digest == digest else None

    def object_at(self, node: int) -> tuple[Slot, ObjectRow] | None:
        """Return the object that a nodeid names, and the first image that has it; None if there is none, or more than one."""
        first: tuple[Slot, ObjectRow] | None = None
        for slot in self.slots.values():
            for row in slot.image.objects.find_by_start(node & ~OBJECT_BIT):
                if first is None:
                    first = slot, row
                elif row.digest != first[1].digest:
                    return None
        return first

    def opened(self, node: int) -> bool:
        """Count that an object was opened; return whether it was before, so that the kernel may have some of it."""
        before = node in self._seen
        if len(self._seen) < _SEEN_MAX:
            self._seen.add(node)
        self._opens[node] = self._opens.get(node, 0) + 1
        return before

    def released(self, node: int) -> None:
        """Count that it was closed; one that another process had opened counts for nothing."""
        count = self._opens.pop(node, 1) - 1
        if count > 0:
            self._opens[node] = count

    def is_in_use(self, slot: Slot) -> bool:
        """Say whether files of an image, or objects that it has, are open."""
        return slot.opens > 0 or self.has_open_objects(slot)

    def has_open_objects(self, slot: Slot) -> bool:
        """Say whether objects are open that this image has and no other one."""
        others = [other for other in self.slots.values() if other is not slot]
        return any(_has(slot, node) and not any(_has(other, node) for other in others) for node in self._opens)

    def take_moved(self, is_local: Callable[[ObjectRow], bool]) -> list[int]:
        """Return the objects that were read here and are elsewhere now, and that nobody has open; once."""
        moved = []
        for node in self._seen - self._opens.keys():
            found = self.object_at(node)
            if found is None or is_local(found[1]):
                moved.append(node)
        self._seen.difference_update(moved)
        return moved


def _has(slot: Slot, node: int) -> bool:
    return bool(slot.image.objects.find_by_start(node & ~OBJECT_BIT))


def object_node(digest: bytes) -> int:
    """Return the nodeid of the object with this raw digest."""
    return OBJECT_BIT | int.from_bytes(digest[:8], "big") >> 1
