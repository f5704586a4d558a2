"""Which small objects lie in a frame: the object map the other way round, made once, when it is first asked for.

An object map leads from objects to frames. What a frame brings to this host, however, is kept object by object, so that whoever reads one
of them natively finds it; for that the map has to be turned round.

Made by whichever thread asks first, the trio thread apart, which only asks what is there.
"""

import threading
from array import array
from typing import NamedTuple

from imagefs.format.objectmap import ObjectMap, ObjectRow


class Member(NamedTuple):
    """A small object, and where in its frame it begins, in bytes."""

    row: ObjectRow
    offset: int


class Members:
    """Of one image. ``build`` and ``of`` may be called in any thread but trio's, ``sample`` in any."""

    __slots__ = ("_lock", "_objects", "_order", "_starts")

    def __init__(self, objects: ObjectMap) -> None:
        """Cheap: nothing of the map is looked at."""
        self._objects = objects
        self._lock = threading.Lock()
        # The objects in the order of their frames, and for each frame where its own begin; one more at the end.
        self._order = array("I")
        self._starts: array[int] | None = None

    def build(self) -> "array[int]":
        """Turn the map round, once. Blocks: about 0.3 us an object. ``IntegrityError``."""
        with self._lock:
            if self._starts is None:
                self._order, self._starts = self._objects.by_frame()
            return self._starts

    def of(self, frame: int) -> list[Member]:
        """Return the objects that lie whole in frame number ``frame``, in no order. Blocks the first time. ``IntegrityError``."""
        start, end = self.build()[frame : frame + 2]
        return [self._member(number) for number in self._order[start:end]]

    def sample(self, frame: int) -> ObjectRow | None:
        """Return one of the objects that lie in a frame, None where that is not known or there is none."""
        starts = self._starts
        if starts is None or starts[frame] == starts[frame + 1]:
            return None
        return self._objects.object(self._order[starts[frame]])

    def _member(self, number: int) -> Member:
        row = self._objects.object(number)
        extent = self._objects.extents(row, 0, row.size)[0]
        return Member(row, extent.frame_offset)
