"""One conversion from end to end: read the layers, flatten, pack, publish.

Order, and why:

1. Layers are read once, the topmost first. So when a lower layer comes, it is known what the layers above hide, and content that nobody can
   see is not stored. Their entries are kept; their content goes to the :class:`~imagefs.convert.builder.ContentBuilder` at once.
2. The entries are flattened bottom-up by the OCI rules. In the rare image where a file turns out to be visible although its
   path was hidden (it is reached through a symbolic link that a later layer replaced), the layers that hold such files are read again.
3. Publishing goes bottom-up: packs, then the tree and the object map, then the manifest, then the ref. A crash between any two leaves
   garbage that a later run uses, never a broken image.

The manifest holds nothing of this machine, this store, or this moment: the same source gives the same digest.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagefs.convert.builder import ContentBuilder
from imagefs.convert.directory import DirSource
from imagefs.convert.entry import Entry, Kind
from imagefs.convert.flatten import flatten, missing_content
from imagefs.convert.known import KnownPacks
from imagefs.convert.mask import MaskFilter
from imagefs.convert.oci import Source, open_source
from imagefs.convert.pieces import FRAME_SIZE
from imagefs.convert.stages import Clock, Progress
from imagefs.convert.stream import LayerStream, Limits
from imagefs.convert.tar import TarReader
from imagefs.digest import Buffer
from imagefs.format.erofs_writer import write_tree
from imagefs.format.manifest import BlobName, Layer, Manifest, Platform
from imagefs.format.objectmap import build_object_map
from imagefs.format.tree import Inode
from imagefs.store.base import ObjectStore
from imagefs.store.images import put_blob, put_manifest
from imagefs.store.refs import Ref, publish

Pieces = Iterable[Buffer]


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did. Sizes in bytes; ``seconds`` by stage, those of the ``pack.*`` stages summed over the worker threads.

    ``bytes_in`` is what was read from the source, ``bytes_logical`` the size of all files with a hard link counted once, ``new_bytes``
    what was added to the store, ``shared_bytes`` what of the image the store had.
    """

    ref: str
    manifest: str
    described: str
    files: int
    layers: int
    bytes_in: int
    bytes_logical: int
    new_bytes: int
    shared_bytes: int
    packs_new: int
    packs_shared: int
    tree_bytes: int
    map_bytes: int
    seconds: dict[str, float]


class _Conversion:
    """The state of one conversion: where layers are read and what was read."""

    def __init__(
        self,
        source: Source | DirSource,
        builder: ContentBuilder,
        known: KnownPacks,
        *,
        clock: Clock,
        limits: Limits,
        progress: Callable[[Progress], None],
    ) -> None:
        self.source = source
        self.builder = builder
        self.clock = clock
        self._known = known
        self._limits = limits
        self._progress = progress
        self._total = source.total_bytes
        self._done = 0
        self.bytes_in = 0

    def read_all(self) -> list[list[Entry]]:
        """Read every layer, the topmost first; return their entries, the bottom layer first."""
        layers: list[list[Entry]] = []
        mask = MaskFilter()
        for index in reversed(range(self.source.layer_count)):
            entries = []
            for entry, pieces in self._layer(index):
                if entry.kind is Kind.FILE and not mask.hides(entry.path):
                    entry.content = self.builder.add(entry.size, pieces, entry.sparse)
                entries.append(entry)
            mask.begin_layer(index)
            for entry in entries:
                mask.add(entry)
            layers.append(entries)
        layers.reverse()
        return layers

    def read_missing(self, layers: list[list[Entry]], missing: Sequence[Entry]) -> None:
        """Read again the layers that hold ``missing`` entries, for those entries' content alone."""
        wanted = {id(entry) for entry in missing}
        for index, entries in enumerate(layers):
            if not any(id(entry) in wanted for entry in entries):
                continue
            for known, (entry, pieces) in zip(entries, self._layer(index), strict=True):
                if id(known) in wanted:
                    known.content = self.builder.add(entry.size, pieces, entry.sparse)

    def _layer(self, index: int) -> Iterator[tuple[Entry, Pieces]]:
        if isinstance(self.source, DirSource):
            for entry, pieces in self.source.entries():
                self._done += entry.size
                self._tell()
                yield entry, pieces
            self.bytes_in = self._done
            return
        layer = self.source.layers[index]
        if self._known.checked(layer.digest, layer.diff_id):
            layer = replace(layer, diff_id=None)
        with LayerStream(layer, self._limits) as stream:
            reader = TarReader(self._told(stream))
            for entry in reader:
                yield entry, reader.pieces()
            stream.finish()
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


def convert(
    source: str,
    ref: Ref,
    store: ObjectStore,
    *,
    jobs: int,
    level: int = 3,
    platform: str | None = None,
    limits: Limits | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ConvertReport:
    """Convert ``source`` (see :func:`~imagefs.convert.oci.open_source`) and publish it as ``ref``.

    ``jobs`` threads compress at zstd ``level``; ``progress`` is called from this thread about once a megabyte. Raises ``SourceError``,
    ``UnsupportedError``, ``LimitError`` and ``NotFoundError`` for what is wrong with the source and the store's errors: then nothing was
    published, and what was written so far is used by the next try.
    """
    tell = progress or (lambda _: None)
    clock = Clock()
    with open_source(source, platform) as opened:
        # What lies in the scratch directory is mapped and unlinked at once; gone this early, it is not there when the process is killed.
        with clock.stage("known"), tempfile.TemporaryDirectory(prefix="imagefs-convert-") as scratch:
            known = KnownPacks.load(store, Path(scratch))
        with ContentBuilder(store, known, jobs=jobs, level=level) as builder:
            conversion = _Conversion(opened, builder, known, clock=clock, limits=limits or Limits(), progress=tell)
            with clock.stage("read"):
                layers = conversion.read_all()
            with clock.stage("flatten"):
                root = flatten(layers)
                missing = missing_content(root)
            if missing:
                with clock.stage("reread"):
                    conversion.read_missing(layers, missing)
                    root = flatten(layers)
            layers.clear()
            tell(Progress("publish", opened.total_bytes, opened.total_bytes))
            return _publish(conversion, ref, store, root)


def _publish(conversion: _Conversion, ref: Ref, store: ObjectStore, root: Inode) -> ConvertReport:
    """Write the last packs, the tree and the object map, then the manifest, then the ref."""
    source, builder, clock = conversion.source, conversion.builder, conversion.clock
    with clock.stage("tree"):
        # Made while the workers compress the last packs, stored after them.
        wanted, files, logical = _census(root)
        tree = write_tree(root)
    with clock.stage("flush"):
        builder.flush()
        tree_name, tree_new = put_blob(store, tree)
    with clock.stage("map"):
        built = builder.built(wanted)
        objects = build_object_map(built.objects, built.packs)
        map_name, map_new = put_blob(store, objects)
    manifest = Manifest(
        tree=BlobName(tree_name, len(tree)),
        objects=BlobName(map_name, len(objects)),
        platform=Platform(source.platform.os, source.platform.architecture, source.platform.variant or None),
        config=source.config,
        annotations=source.annotations,
        layers=[Layer(layer.media_type, layer.digest or layer.diff_id or "", layer.diff_id) for layer in source.layers],
        files=files,
        bytes=logical,
        frame_size=FRAME_SIZE,
    )
    with clock.stage("publish"):
        name, manifest_new = put_manifest(store, manifest)
        publish(store, ref, name)
    tally = builder.tally
    for stage, seconds in (("hash", tally.hash_seconds), ("compress", tally.compress_seconds), ("store", tally.store_seconds)):
        clock.seconds[f"pack.{stage}"] = seconds
    return ConvertReport(
        ref=str(ref),
        manifest=name,
        described=source.described,
        files=files,
        layers=len(source.layers),
        bytes_in=conversion.bytes_in,
        bytes_logical=logical,
        new_bytes=tally.new_bytes + tree_new + map_new + manifest_new,
        shared_bytes=tally.shared_bytes,
        packs_new=tally.packs_new,
        packs_shared=tally.packs_shared,
        tree_bytes=len(tree),
        map_bytes=len(objects),
        seconds={stage: round(seconds, 4) for stage, seconds in clock.seconds.items()},
    )


def _census(root: Inode) -> tuple[set[bytes], int, int]:
    """Return the objects that the tree names, how many inodes are no directories, and the sum of their sizes."""
    objects: set[bytes] = set()
    seen: set[Inode] = set()
    size = 0
    pending = [root]
    while pending:
        for child in (pending.pop().children or {}).values():
            if child.children is not None:
                pending.append(child)
            elif child not in seen:
                seen.add(child)
                size += child.size
                if child.object is not None:
                    objects.add(child.object)
    return objects, len(seen), size
