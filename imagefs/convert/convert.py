"""One conversion from end to end: read the layers, flatten, pack, publish.

Order, and why:

1. Layers are read once, the topmost first. So when a lower layer comes, it is known what the layers above hide, and content that nobody can
   see is not stored. Their entries are kept; their content goes to the :class:`~imagefs.convert.builder.ContentBuilder` at once. A layer
   that an earlier conversion read is taken from its listing, if the store has its content; where that leads nowhere, all begins again
   without listings.
2. The entries are flattened bottom-up by the OCI rules. In the rare image where a file turns out to be visible although its
   path was hidden (it is reached through a symbolic link that a later layer replaced), the layers that hold such files are read again.
3. Publishing goes bottom-up: packs, then the tree and the object map, then listings of the layers that were read, then the manifest, then
   the ref. A crash between any two leaves garbage that a later run uses, never a broken image.

The manifest holds nothing of this machine, this store, or this moment: the same source gives the same digest. What does not live here:
reading layers (:mod:`imagefs.convert.reading`).
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagefs.convert.builder import ContentBuilder
from imagefs.convert.directory import DirSource
from imagefs.convert.flatten import flatten, missing_content
from imagefs.convert.known import KnownPacks
from imagefs.convert.listed import ListedLayers
from imagefs.convert.oci import Source, open_source
from imagefs.convert.pieces import FRAME_SIZE
from imagefs.convert.reading import Reading
from imagefs.convert.stages import Clock, Progress
from imagefs.convert.stored import DoubtError
from imagefs.convert.stream import Limits
from imagefs.format.erofs_writer import write_tree
from imagefs.format.manifest import BlobName, Layer, Manifest, Platform
from imagefs.format.objectmap import build_object_map
from imagefs.format.tree import Inode
from imagefs.store.base import ObjectStore
from imagefs.store.images import put_blob, put_manifest
from imagefs.store.leases import Writing
from imagefs.store.listings import put_listing
from imagefs.store.refs import Ref, publish


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did. Sizes in bytes; ``seconds`` by stage, those of the ``pack.*`` stages summed over the worker threads.

    ``layers_known`` of the ``layers`` were not unpacked, because an earlier conversion had; ``bytes_in`` is what was read from the source,
    ``bytes_logical`` the size of all files with a hard link counted once, ``new_bytes`` what was added to the store (the keys that only
    point apart), ``shared_bytes`` what of the image the store had.
    """

    ref: str
    manifest: str
    described: str
    files: int
    layers: int
    layers_known: int
    bytes_in: int
    bytes_logical: int
    new_bytes: int
    shared_bytes: int
    packs_new: int
    packs_shared: int
    tree_bytes: int
    map_bytes: int
    seconds: dict[str, float]


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
    limits = limits or Limits()
    with open_source(source, platform) as opened, Writing(store, "convert") as lease:
        # What lies in the scratch directory is mapped and unlinked at once; gone this early, it is not there when the process is killed.
        with clock.stage("known"), tempfile.TemporaryDirectory(prefix="imagefs-convert-") as scratch:
            known = KnownPacks.load(store, Path(scratch))
            listed = ListedLayers.load(store, opened.layers, limits, Path(scratch)) if known.has_objects else ListedLayers()
        conversion = _Conversion(
            source=opened, ref=ref, store=store, lease=lease, known=known, jobs=jobs, level=level, limits=limits, clock=clock, tell=tell
        )
        if listed:
            try:
                return conversion.run(listed)
            except DoubtError as error:
                # It holds all that was read, and the cyclic collector is off.
                error.__traceback__ = None
        return conversion.run(ListedLayers())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conversion:
    """All that a conversion needs, but for listings: with those of the store it may lead nowhere, and then is run without.

    ``written`` has the packs that it stored, whichever run it was.
    """

    source: Source | DirSource
    ref: Ref
    store: ObjectStore
    lease: Writing
    known: KnownPacks
    jobs: int
    level: int
    limits: Limits
    clock: Clock
    tell: Callable[[Progress], None]
    written: set[bytes] = field(default_factory=set)

    def run(self, listed: ListedLayers) -> ConvertReport:
        """Convert and publish. ``DoubtError`` if a layer that is listed has to be read after all; then nothing was published."""
        clock, total = self.clock, self.source.total_bytes
        with ContentBuilder(self.store, self.known, jobs=self.jobs, level=self.level, written=self.written) as builder:
            reading = Reading(self.source, builder, self.known, listed, limits=self.limits, progress=self.tell)
            with clock.stage("read"):
                layers = reading.read_all()
            with clock.stage("flatten"), reading.doubted():
                root = flatten(layers, self.source.layer_name)
                missing = missing_content(root)
            if missing:
                with clock.stage("reread"), reading.doubted():
                    reading.read_missing(layers, missing)
                    root = flatten(layers, self.source.layer_name)
            # Listings and tree are made while the workers compress the last packs, and stored after them.
            with clock.stage("list"):
                listings = list(reading.listings(layers))
            layers.clear()
            self.tell(Progress("publish", total, total))
            with clock.stage("tree"), reading.doubted():
                census = _census(root)
                tree = write_tree(root)
            with clock.stage("flush"):
                builder.flush()
            return self._publish(builder, reading, census, tree, listings)

    def _publish(
        self,
        builder: ContentBuilder,
        reading: Reading,
        census: tuple[set[bytes], int, int],
        tree: bytearray,
        listings: Sequence[tuple[int, int, bytes]],
    ) -> ConvertReport:
        """Write the tree, the object map and the listings, then the manifest, then the ref. All packs are in the store."""
        source, store, clock = self.source, self.store, self.clock
        wanted, files, logical = census
        with clock.stage("map"):
            tree_name, new_bytes = put_blob(store, tree)
            built = builder.built(wanted)
            objects = build_object_map(built.objects, built.packs)
            map_name, added = put_blob(store, objects)
            new_bytes += added
        with clock.stage("list"):
            for index, unpacked, listing in listings:
                layer = source.layers[index]
                new_bytes += put_listing(store, layer.digest, layer.diff_id or "", (layer.size, unpacked), listing)
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
            self.lease.publishing()
            name, added = put_manifest(store, manifest)
            publish(store, self.ref, name)
        tally = builder.tally
        clock.seconds |= tally.seconds()
        return ConvertReport(
            ref=str(self.ref),
            manifest=name,
            described=source.described,
            files=files,
            layers=len(source.layers),
            layers_known=reading.layers_known,
            bytes_in=reading.bytes_in,
            bytes_logical=logical,
            new_bytes=tally.new_bytes + new_bytes + added,
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
