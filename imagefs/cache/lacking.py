"""What of a step this host lacks: pieces that neither RAM nor SSD has and nothing is bringing, marked as on their way.

Belongs to the trio thread. What does not live here: which steps (``prefetch_plan``, ``completion``).
"""

from typing import Final

from imagefs.cache.flights import Flights
from imagefs.cache.layout import Lookup, ObjectRecord, Part, frame_part, parts_of
from imagefs.cache.pieces import Frames
from imagefs.cache.prefetch_plan import Step
from imagefs.cache.ram import RamCache
from imagefs.errors import ImageFSError

_RECORDS_MAX: Final = 1024


class Lacking:
    """Of one image. What SSD has is known once ``lookup.members`` is built."""

    def __init__(self, lookup: Lookup, ram: RamCache, flights: Flights) -> None:
        """Start with nothing looked at."""
        self._lookup = lookup
        self._ram = ram
        self._flights = flights
        self._records: dict[bytes, ObjectRecord] = {}

    def mark(self, step: Step) -> Frames:
        """Return what is lacking of a step, which is on its way from now on; nothing where the map is unsound: who reads there is told."""
        wanted: Frames = []
        try:
            for part in self._parts(step):
                slab = part.slab
                if slab is None or slab.dropped is not None:
                    continue
                for piece in range(*slab.pieces(part.start, part.stop)):
                    if part.frames[piece] == step.frame and self._flights.is_lacking(part, piece, frame := part.frame(piece)):
                        self._flights.mark(part, piece)
                        wanted.append(((part, piece), frame))
                # Its slab was only made to be looked at, unless something is coming to it.
                self._ram.discard(slab)
        except ImageFSError:
            self._flights.unmark(wanted)
            return []
        return wanted

    def _parts(self, step: Step) -> list[Part]:
        if step.small:
            return [frame_part(self._lookup, step.frame, self._ram)]
        record = self._records.get(step.row.digest)
        if record is None:
            if len(self._records) >= _RECORDS_MAX:
                self._records.clear()
            record = self._records[step.row.digest] = ObjectRecord(self._lookup, step.row)
        return parts_of(record, step.start, step.end, self._ram)
