"""Snapshots in a store: a directory of a checkpoint becomes an image of kind ``snapshot``, and is found again with its record.

What is pushed is any directory tree: an engine's files, a writable layer with its whiteouts and attributes, a source tree. Every file is an
object, as in an image, and lies in packs as there; but the memory files, which the caller names by patterns, are cut by pages
(``snapshotstore.pages``) against what the lineage has. Reading needs nothing of this module: a snapshot is mounted by its manifest.

What it promises:

- **Atomic.** Packs, then blobs, then the manifest, then the lineage's pointer, then the ref. Killed anywhere, it leaves what the next push
  uses or ``gc`` removes, and the ref as it was; until it ends, a lease keeps ``gc`` away. Of two that push the same, the last one has the
  ref.
- **An object is named by the BLAKE3 of the file**, whatever its frames are, so two snapshots that have the same file have the same object.
- **Bounded memory**, whatever the size of the memory: at most 150 MB of content on its way, and the index of the lineage.
- The tree's root is 0700: a snapshot is a core dump. Owners and modes below it are those of the directory.

A directory that somebody writes to meanwhile is refused (``SourceError``). Nothing is written on this host but to a directory store.

What does not live here: who may restore it (``snapshotstore.compat``), and restoring.
"""

import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import fsdecode
from pathlib import Path
from typing import Final

from msgspec import structs

from imagefs.convert.builder import Built, BuiltObject, ContentBuilder
from imagefs.convert.entry import Content, Entry, Kind
from imagefs.convert.flatten import flatten
from imagefs.convert.known import KnownPacks
from imagefs.convert.pieces import cut, with_holes
from imagefs.convert.platforms import Target
from imagefs.convert.stages import Clock, Progress
from imagefs.digest import Buffer, Hasher
from imagefs.errors import UnsupportedError, UsageError
from imagefs.format.erofs_writer import write_tree
from imagefs.format.manifest import SNAPSHOT, BlobName, Manifest, Platform
from imagefs.format.objectmap import build_object_map
from imagefs.format.tree import INLINE_MAX
from imagefs.store.base import ObjectStore
from imagefs.store.checked import CheckedStore
from imagefs.store.images import get_manifest, put_blob, put_manifest
from imagefs.store.leases import Writing
from imagefs.store.refs import Ref, publish, resolve
from snapshotstore import lineage, manifest
from snapshotstore.fingerprints import FRAME_PAGES, FRAMES_MAX, PAGE, PAGES_MAX, PageIndex, PageTable, TablePack, encode
from snapshotstore.handmade import Below
from snapshotstore.lineage import Known
from snapshotstore.listing import Snapshot
from snapshotstore.manifest import Record
from snapshotstore.packing import FramePacker, PackedFrames
from snapshotstore.pages import CHUNK, PageCutter, Runs

MEMORY: Final = ("engine/pages-*.img", "engine/pages.img")
"""What the engines call the files that hold memory, page by page: CRIU's and gVisor's."""

LEVEL: Final = 1
"""zstd's, for memory: a core compresses half as much again as at 3, to a tenth more."""

_LEVEL: Final = 3
"""That of all else, and of conversion."""


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did; sizes in bytes, ``seconds`` by stage.

    ``bytes_logical`` is the size of all files. Of the memory, ``memory_bytes``, ``zero_bytes`` are holes, ``known_bytes`` were there, in
    the lineage or already in this snapshot, and ``stored_bytes`` are in new frames. The store has ``new_bytes`` more. ``healed`` counts
    what was damaged there and is written again. ``notes`` say what was left out.
    """

    ref: str
    manifest: str
    files: int
    bytes_logical: int
    memory_bytes: int
    zero_bytes: int
    known_bytes: int
    stored_bytes: int
    new_bytes: int
    packs_new: int
    pages_known: int
    healed: int
    notes: tuple[str, ...]
    seconds: dict[str, float]


# -- pushing ------------------------------------------------------------------------------------------------------------------------------


def push(
    store: ObjectStore,
    directory: Path,
    record: Record,
    ref: Ref,
    *,
    folder: str = "",
    memory: Sequence[str] = MEMORY,
    jobs: int = 2,
    level: int = LEVEL,
    recheck: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> PushReport:
    """Store what is below ``directory`` as a snapshot with ``record``, in which it is below ``folder``, and let ``ref`` name it.

    ``memory`` are patterns of paths of the snapshot in the way of ``fnmatch`` (a star is any characters, also slashes). ``jobs`` threads
    compress memory at zstd ``level``. What the record says of its size is filled in. Raises ``SourceError`` and ``AccessError`` for what is
    wrong with the directory, and the store's errors: then the ref is as it was, and what was stored is used by the next try.
    ``recheck``: nothing is relied on unread. What the store has already is verified before it is referred to or left as it is; what is
    damaged is written again where it is of this snapshot, and else is nothing that members of the lineage refer to from now on.
    """
    clock = Clock()
    checked = CheckedStore(store)
    if recheck:
        store = checked
    with Writing(store, "push") as lease:
        with clock.stage("known"):
            known = lineage.load(store, record.lineage, weed=recheck)
            pages_known = len(known.index)
        source = Below(directory, Target("linux", record.cpu.arch).normal, folder)
        with (
            ContentBuilder(store, KnownPacks(store), jobs=jobs, level=_LEVEL) as builder,
            FramePacker(store, jobs=jobs, level=level) as packer,
        ):
            reading = _Reading(source, builder, known.index, packer, patterns=memory, tell=progress or (lambda _: None))
            with clock.stage("read"):
                entries = reading.read()
            with clock.stage("tree"):
                root = flatten([entries])
                root.mode = stat.S_IFDIR | 0o700
                tree = write_tree(root)
            with clock.stage("flush"):
                packed = packer.finish()
                builder.flush()
                built = builder.built(reading.contents)
        with clock.stage("publish"):
            lease.publishing()
            publishing = _Publishing(store, known, built, packed, reading)
            name, new_bytes = publishing.publish(tree, record, ref, source)
    cutter, tally = reading.cutter, builder.tally
    zero = sum(runs.zero for _, runs in reading.memory.values())
    return PushReport(
        ref=str(ref),
        manifest=name,
        files=reading.files,
        bytes_logical=reading.size,
        memory_bytes=reading.memory_size,
        zero_bytes=zero,
        known_bytes=reading.memory_size - zero - cutter.stored,
        stored_bytes=cutter.stored,
        new_bytes=new_bytes + tally.new_bytes + packed.new_bytes,
        packs_new=tally.packs_new + packed.new_packs,
        pages_known=pages_known,
        healed=len(checked.healed),
        notes=tuple(source.notes),
        seconds={stage: round(seconds, 4) for stage, seconds in clock.seconds.items()},
    )


class _Reading:
    """Reads the directory once: memory goes to the cutter, other content to the builder."""

    def __init__(
        self,
        source: Below,
        builder: ContentBuilder,
        index: PageIndex,
        packer: FramePacker,
        *,
        patterns: Sequence[str],
        tell: Callable[[Progress], None],
    ) -> None:
        self._source = source
        self._builder = builder
        self._patterns = patterns
        self._tell = tell
        self._index = index
        self.cutter = PageCutter(index, packer.add)
        self.contents: set[bytes] = set()
        self.memory: dict[bytes, tuple[int, Runs]] = {}
        self.memory_size = 0
        self.files = 0
        self.size = 0

    def read(self) -> list[Entry]:
        """Return the entries, with their contents handed in."""
        entries = []
        for entry, pieces in self._source.entries():
            if entry.kind is Kind.FILE:
                entry.content = self._content(entry, pieces)
                self.size += entry.size
            self.files += entry.kind not in {Kind.DIR, Kind.HARDLINK}
            self._tell(Progress("read", self.size, 0))
            entries.append(entry)
        self.cutter.finish()
        return entries

    def _content(self, entry: Entry, pieces: Iterable[Buffer]) -> Content:
        if entry.size > INLINE_MAX and self._is_memory(entry.path):
            return self._cut(entry, pieces)
        content = self._builder.add(entry.size, pieces, entry.sparse)
        if content.object is not None:
            self.contents.add(content.object)
        return content

    def _is_memory(self, path: bytes) -> bool:
        return any(fnmatchcase(fsdecode(path), pattern) for pattern in self._patterns)

    def _cut(self, entry: Entry, pieces: Iterable[Buffer]) -> Content:
        hasher = Hasher()
        self._index.reserve(entry.size // PAGE)
        if entry.sparse is not None:
            pieces = with_holes(pieces, entry.sparse, entry.size)
        before = self.size
        for parts in cut(pieces, CHUNK):
            chunk = _joined(parts)
            hasher.update(chunk)
            self.cutter.add(chunk)
            before += len(chunk)
            self._tell(Progress("read", before, 0))
        runs = self.cutter.end()
        digest = hasher.digest()
        self.memory_size += entry.size
        # The same file once more lies where it lies already: its pages were all known.
        self.memory.setdefault(digest, (entry.size, runs))
        return Content(entry.size, digest, None)


def _joined(parts: list[Buffer]) -> bytes:
    """Return the bytes of buffers, of which one that is all of an object need not be copied."""
    whole = parts[0].obj if len(parts) == 1 and isinstance(parts[0], memoryview) else None
    return whole if isinstance(whole, bytes) and len(whole) == len(parts[0]) else b"".join(parts)


class _Publishing:
    """What was read becomes an object map and a page table, and all of it is published, bottom-up."""

    def __init__(self, store: ObjectStore, known: Known, built: Built, packed: PackedFrames, reading: _Reading) -> None:
        self._store = store
        self._known = known
        self._built = built
        self._packed = packed
        self._reading = reading
        self._new_bytes = 0

    def publish(self, tree: bytearray, record: Record, ref: Ref, source: Below) -> tuple[str, int]:
        """Return the manifest's hex digest, and the bytes added to the store."""
        store, reading = self._store, self._reading
        objects, pages = self._object_map()
        raws: list[Buffer] = [tree, objects]
        if (table := self._table()) is not None:
            raws.append(table)
        names = [self._put(raw) for raw in raws]
        # Its own comes first.
        pages = names[2:] + pages
        own = sum(pack[2] for pack in self._built.packs) + sum(pack.size for pack in self._packed.packs)
        worth = structs.replace(record.economics, logical=reading.size, unique=own)
        made = Manifest(
            tree=names[0],
            objects=names[1],
            platform=Platform(source.platform.os, source.platform.architecture, source.platform.variant or None),
            config={},
            annotations=manifest.annotations(structs.replace(record, economics=worth), pages),
            layers=[],
            files=reading.files,
            bytes=reading.size,
            frame_size=FRAME_PAGES * PAGE,
            kind=SNAPSHOT,
        )
        name, new = put_manifest(store, made)
        lineage.announce(store, record.lineage, name, pages)
        publish(store, ref, name)
        return name, new + self._new_bytes

    def _put(self, raw: Buffer) -> BlobName:
        name, new = put_blob(self._store, raw)
        self._new_bytes += new
        return BlobName(name, len(raw))

    def _object_map(self) -> tuple[bytes, list[BlobName]]:
        """Return the map, and the page tables of the lineage's packs that it names."""
        reading, known = self._reading, self._known
        places = _Places(self._built)
        for pack, numbers in zip(self._packed.packs, self._packed.numbers, strict=True):
            places.add(pack, dict(enumerate(numbers)))
        frames = sorted({frame for _, runs in reading.memory.values() for frame in runs.frames() if frame < len(known.slots)})
        of_pack: dict[int, dict[int, int]] = {}
        for frame in frames:
            pack_number, within = known.slots[frame]
            of_pack.setdefault(pack_number, {})[within] = frame
        for pack_number, used in of_pack.items():
            places.add(known.packs[pack_number], used)
        objects = {item.digest: item for item in self._built.objects}
        for digest, (size, runs) in reading.memory.items():
            objects.setdefault(digest, BuiltObject(digest, size, runs.extents(places.numbers.__getitem__)))
        data = build_object_map([objects[digest] for digest in sorted(objects)], places.packs)
        return data, list(dict.fromkeys(known.tables[pack_number] for pack_number in of_pack))

    def _table(self) -> bytes | None:
        """Return the page table of what is new, as far as an index takes it; None if there is nothing."""
        packs: list[TablePack] = []
        prints: list[Buffer] = []
        room = PAGES_MAX
        for pack, numbers in zip(self._packed.packs, self._packed.numbers, strict=True):
            pages = [entry.length // PAGE for entry in pack.frames]
            room -= sum(pages)
            if room < 0 or max(numbers) >= FRAMES_MAX:
                break
            packs.append(pack)
            prints += map(self._known.index.of_frame, numbers, pages)
        return encode(PageTable(packs, prints)) if packs else None


class _Places:
    """The packs of an object map, each once, and where in it the frames of the index are: ``numbers`` maps theirs to the map's."""

    def __init__(self, built: Built) -> None:
        self.packs = list(built.packs)
        self.numbers: dict[int, int] = {}
        self._count = 0
        self._first: dict[bytes, int] = {}
        for digest, _, _, frames in built.packs:
            self._first[digest] = self._count
            self._count += len(frames)

    def add(self, pack: TablePack, frames: dict[int, int]) -> None:
        """Add a pack; ``frames`` says for frames of it which number they have in the index."""
        first = self._first.get(pack.digest)
        if first is None:
            first = self._first[pack.digest] = self._count
            self.packs.append((pack.digest, pack.key, pack.size, pack.frames))
            self._count += len(pack.frames)
        for within, number in frames.items():
            self.numbers[number] = first + within


# -- finding ------------------------------------------------------------------------------------------------------------------------------


def inspect(store: ObjectStore, text: str) -> Snapshot:
    """Return the snapshot that a ref or a digest names. ``UnsupportedError`` if it is an image, or its record of another format."""
    name = resolve(store, text)
    return _snapshot(store, name, text)


def amend(store: ObjectStore, snapshot: Snapshot, record: Record, ref: Ref) -> str:
    """Publish a snapshot again with another record (its figures, a quarantine), as ``ref``; return its manifest. Its files stay."""
    if record.lineage != snapshot.record.lineage:
        raise UsageError("a snapshot cannot change its lineage")
    pages = manifest.pages_of(snapshot.manifest.annotations)
    name, _ = put_manifest(store, structs.replace(snapshot.manifest, annotations=manifest.annotations(record, pages)))
    lineage.announce(store, record.lineage, name, pages)
    publish(store, ref, name)
    return name


def _snapshot(store: ObjectStore, name: str, text: str) -> Snapshot:
    found = get_manifest(store, name)
    if found.kind != SNAPSHOT:
        raise UnsupportedError(f"{text} is no snapshot: it is of kind {found.kind}", hint="`imagefs mount` mounts images")
    return Snapshot(name, text, found, manifest.read(found.annotations))
