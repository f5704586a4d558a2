"""Reads the layers of one source, the topmost first, and hands their content to the builder.

What it promises:

- **A layer is unpacked once in a store's life.** What that gave is kept as a listing; of a layer that has one, and whose content the store
  still has where it can be seen, only the digest is verified. The entries, and what the builder is told, are the same either way.
- **A listing is only written of what was read whole**, with both digests found right. It has all of the layer, also what another layer
  hides here: so it is the same, whichever image the layer was met in first.

One thread owns a reading. What does not live here: what comes of the entries, and publishing (:mod:`imagefs.convert.convert`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from imagefs.convert.builder import ContentBuilder
from imagefs.convert.directory import DirSource
from imagefs.convert.entry import Content, Entry, Kind
from imagefs.convert.known import KnownPacks
from imagefs.convert.listed import ListedLayer, ListedLayers, rows_of
from imagefs.convert.mask import MaskFilter
from imagefs.convert.oci import Source
from imagefs.convert.pieces import with_holes
from imagefs.convert.stages import Progress
from imagefs.convert.stored import DoubtError, StoredObject
from imagefs.convert.stream import BlobChecks, LayerStream, Limits
from imagefs.convert.tar import TarReader
from imagefs.digest import Buffer, Hasher
from imagefs.errors import IntegrityError, LimitError, SourceError, UnsupportedError
from imagefs.format.listing import MAX_LISTING, build_listing
from imagefs.format.tree import INLINE_MAX

Pieces = Iterable[Buffer]

_HIDDEN_HOLES_MAX: Final = 1 << 30
"""Bytes of a hidden sparse file that is hashed for the listing alone, at most: beyond, its layer goes without one."""


class _Read:
    """A layer that was read and is to be listed: ``hidden`` has the content of entries that were not stored, by their place."""

    def __init__(self) -> None:
        self.hidden: dict[int, Content] | None = {}
        self.unpacked = 0

    def name(self, place: int, entry: Entry, pieces: Pieces) -> None:
        """Take the content of a hidden file for its name."""
        if self.hidden is None:
            return
        if entry.sparse is not None and entry.size > _HIDDEN_HOLES_MAX:
            self.hidden = None
        else:
            self.hidden[place] = _named(entry.size, pieces, entry.sparse)


class Reading:
    """One pass over a source. ``bytes_in`` is what was read of it; ``layers_known`` how many layers were not unpacked."""

    def __init__(
        self,
        source: Source | DirSource,
        builder: ContentBuilder,
        known: KnownPacks,
        listed: ListedLayers,
        *,
        limits: Limits,
        progress: Callable[[Progress], None],
    ) -> None:
        """Read nothing yet."""
        self._source = source
        self._builder = builder
        self._known = known
        self._listed = listed
        self._limits = limits
        self._progress = progress
        self._total = source.total_bytes
        self._done = 0
        self._read: dict[int, _Read] = {}
        self._from_listing: dict[int, ListedLayer] = {}
        self.bytes_in = 0

    @property
    def layers_known(self) -> int:
        """How many layers were not unpacked, because an earlier conversion had done that."""
        return len(self._from_listing)

    @contextmanager
    def doubted(self) -> Iterator[None]:
        """Make of what is wrong with the image a ``DoubtError`` if some of it comes from a listing: the source may know better."""
        try:
            yield
        except (SourceError, UnsupportedError, LimitError) as error:
            if not self._from_listing:
                raise
            raise DoubtError(error.message) from error

    # -- all of it, once ------------------------------------------------------------------------------------------------------------

    def read_all(self) -> list[list[Entry]]:
        """Read every layer, the topmost first; return their entries, the bottom layer first.

        Raises what is wrong with the source, the store's errors, and ``DoubtError``.
        """
        layers: list[list[Entry]] = []
        mask = MaskFilter()
        with BlobChecks() as checks:
            for index in reversed(range(self._source.layer_count)):
                entries = self._take_listed(index, mask)
                if entries is None:
                    entries = self._read_layer(index, mask)
                else:
                    checks.add(self._source.layers[index])
                mask.begin_layer(index)
                for entry in entries:
                    mask.add(entry)
                layers.append(entries)
        self.bytes_in += checks.bytes_in
        layers.reverse()
        return layers

    def _read_layer(self, index: int, mask: MaskFilter) -> list[Entry]:
        entries: list[Entry] = []
        layers = self._source.layers
        digest = layers[index].digest if layers else ""
        read = _Read() if digest and layers[index].diff_id and self._listed.get(digest) is None else None
        for entry, pieces in self._layer(index, read):
            if entry.kind is Kind.FILE:
                if not mask.hides(entry.path):
                    entry.content = self._builder.add(entry.size, pieces, entry.sparse)
                elif read is not None:
                    read.name(len(entries), entry, pieces)
            entries.append(entry)
        if read is not None:
            self._read[index] = read
        return entries

    def _take_listed(self, index: int, mask: MaskFilter) -> list[Entry] | None:
        """Return the entries of a layer that need not be read, their content handed in; None if it must be."""
        layer = self._source.layers[index] if self._source.layers else None
        listed = self._listed.get(layer.digest) if layer is not None else None
        if layer is None or listed is None:
            return None
        entries: list[Entry] = []
        stored: list[StoredObject] = []
        finder = self._known.finder(layer.digest)
        try:
            for entry, content in listed.entries():
                if content is not None and not mask.hides(entry.path):
                    entry.content = content
                    if content.object is not None and content.object not in self._builder:
                        found = finder.find(content.object, content.size)
                        if found is None:
                            return None
                        stored.append(found)
                entries.append(entry)
        except (IntegrityError, UnsupportedError):
            return None
        for found in stored:
            self._builder.add_stored(found)
        self._from_listing[index] = listed
        self._done += layer.size
        self._tell()
        return entries

    # -- what only flattening finds -------------------------------------------------------------------------------------------------

    def read_missing(self, layers: list[list[Entry]], missing: Sequence[Entry]) -> None:
        """Read again the layers that hold ``missing`` entries, for those entries' content alone. Raises as :meth:`read_all`."""
        wanted = {id(entry) for entry in missing}
        for index, entries in enumerate(layers):
            if not any(id(entry) in wanted for entry in entries):
                continue
            if (listed := self._from_listing.get(index)) is not None:
                self._take_missing(listed, index, entries, wanted)
                continue
            for known, (entry, pieces) in zip(entries, self._layer(index), strict=True):
                if id(known) in wanted:
                    known.content = self._builder.add(entry.size, pieces, entry.sparse)

    def _take_missing(self, listed: ListedLayer, index: int, entries: Sequence[Entry], wanted: set[int]) -> None:
        finder = self._known.finder(self._source.layers[index].digest)
        for known, (_, content) in zip(entries, listed.entries(), strict=True):
            if id(known) not in wanted or content is None:
                continue
            known.content = content
            if content.object is not None and content.object not in self._builder:
                found = finder.find(content.object, content.size)
                if found is None:
                    raise DoubtError("the store does not have what is hidden elsewhere")
                self._builder.add_stored(found)

    # -- what others need not read any more -----------------------------------------------------------------------------------------

    def listings(self, layers: Sequence[Sequence[Entry]]) -> Iterator[tuple[int, int, bytes]]:
        """Yield for each layer that was read and had no listing: its number, its size unpacked, and a listing of it."""
        for index, read in self._read.items():
            if read.hidden is not None:
                listing = build_listing(rows_of(layers[index], read.hidden))
                if len(listing) <= MAX_LISTING:
                    yield index, read.unpacked, listing

    # -- the source -----------------------------------------------------------------------------------------------------------------

    def _layer(self, index: int, read: _Read | None = None) -> Iterator[tuple[Entry, Pieces]]:
        if isinstance(self._source, DirSource):
            for entry, pieces in self._source.entries():
                self._done += entry.size
                self._tell()
                yield entry, pieces
            self.bytes_in = self._done
            return
        layer = self._source.layers[index]
        if self._known.checked(layer.digest, layer.diff_id):
            layer = replace(layer, diff_id=None)
        with LayerStream(layer, self._limits) as stream:
            reader = TarReader(self._told(stream), layer=self._source.layer_name(index))
            for entry in reader:
                yield entry, reader.pieces()
            stream.finish()
            if read is not None:
                read.unpacked = stream.bytes_out
        self._done += layer.size
        self.bytes_in += layer.size

    def _told(self, stream: LayerStream) -> Iterator[bytes]:
        """Pass on a layer's chunks and say how far it is."""
        before = self._done
        for chunk in stream.chunks():
            self._done = before + stream.bytes_in
            self._tell()
            yield chunk
        self._done = before

    def _tell(self) -> None:
        self._progress(Progress("read", self._done, self._total))


def _named(size: int, pieces: Pieces, sparse: list[tuple[int, int]] | None) -> Content:
    """Return a file's content without storing it."""
    if sparse is not None:
        pieces = with_holes(pieces, sparse, size)
    if size <= INLINE_MAX:
        return Content(size, None, b"".join(pieces))
    hasher = Hasher()
    for piece in pieces:
        hasher.update(piece)
    return Content(size, hasher.digest(), None)
