"""Which images the FUSE mount shows, and how nodeids name their files.

A nodeid is a pure function of the mount table: ``slot << SLOT_SHIFT | nid``. Slots are handed out and kept by
``imagefs.mount.table``; nids are in the tree. So nothing is held per inode: there are no lookup counts to keep (``forget`` has nothing to
free), and another process with the same table answers the same requests in the same way. Nodeids below ``1 << SLOT_SHIFT`` are the
forest's own: ``ROOT`` and ``TREES``, or, where one image is the whole mount, its root directory.

All of it belongs to the trio thread. What does not live here: the bind mounts that show a tree somewhere.
"""

from typing import Final

from imagefs.cache.image import Image

SLOT_SHIFT: Final = 40
"""Bits of a nid: a tree of 32 TiB."""

NID_MASK: Final = (1 << SLOT_SHIFT) - 1
ROOT: Final = 1
TREES: Final = 2
TREES_NAME: Final = b"trees"


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
    """The images that are mounted."""

    __slots__ = ("alone", "by_name", "slots")

    def __init__(self) -> None:
        """Start without images."""
        self.slots: dict[int, Slot] = {}
        self.by_name: dict[bytes, Slot] = {}
        self.alone: Slot | None = None

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
