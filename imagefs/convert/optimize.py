"""One optimization from end to end: what an image's starts need goes into packs of its own, in the order of need.

Order, and why:

1. The ref is read once, with its version. From there on everything is about that manifest; the ref changes at the end, and only if nobody
   else changed it: an image that somebody converted meanwhile is not replaced by an optimized older one.
2. The layout starts from the image's *origin* (``imagefs.store.origins``), also where the ref names an optimized image: what one
   optimization laid out is nothing to the next one, and packs that only it used are simply not named any more. Should the origin be gone,
   it starts from what there is.
3. Publishing goes bottom-up like a conversion's: packs, then the object map, then the manifest, its profile, then the ref. Killed in
   between, it leaves garbage that the next run finds and uses, never a broken image. The origin is not touched: who has it mounted notices
   nothing.

The manifest depends on the origin and the profile alone: the same two give the same digest, and an optimized image whose profile has not
changed is left as it is. Tree, configuration and content are the origin's.
"""

import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from imagefs.convert.needed import Plan, plan, start_of
from imagefs.convert.repack import THREADS, Repacker
from imagefs.convert.stages import Clock, Progress
from imagefs.digest import digest_of, is_hex_digest
from imagefs.errors import IntegrityError, NotFoundError, UnsupportedError, UsageError
from imagefs.format import optimized
from imagefs.format.manifest import IMAGE, BlobName, Manifest
from imagefs.format.objectmap import ObjectMap
from imagefs.format.optimized import LAYOUT, Optimized, Start
from imagefs.format.profile import Profile, encode
from imagefs.format.relocation import relocated
from imagefs.store.base import ObjectStore
from imagefs.store.images import fetch_blob_to, get_manifest, put_blob, put_manifest
from imagefs.store.leases import Writing
from imagefs.store.origins import origin_of
from imagefs.store.refs import Ref, move, read, read_versioned, resolve, version_of

_RECORD: Final = "one is recorded and published when the image is mounted and its program started: `imagefs profile ls` lists them"

FindProfile = Callable[[str], Profile | None]
"""Given a manifest's hex digest, returns the merged profile of that image's starts."""

KeepProfile = Callable[[Profile], object]
"""Gives an image a profile."""


@dataclass(frozen=True, slots=True)
class OptimizeReport:
    """What an optimization did. ``changed``: the ref ``ref`` names another image now; ``manifest`` is the one that it names.

    ``origin`` is the image that was laid out anew. ``before`` is a start from the image that was there, ``after`` one from that which is,
    both as far as the profile tells. Of the profile's ``accesses``, ``used`` ones count; ``rare`` ones are of too few starts, ``foreign``
    ones not of this image. ``objects`` moved, in whole or in part, with ``content`` bytes of content in ``frames`` frames. The store has
    ``new_bytes`` more.
    """

    ref: str
    manifest: str
    origin: str
    changed: bool
    profile: str
    starts: int
    accesses: int
    used: int
    rare: int
    foreign: int
    before: Start
    after: Start
    objects: int
    frames: int
    content: int
    packs: int
    packs_new: int
    new_bytes: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Target:
    """What is optimized, and the ref that is to name the result, if it still has ``version`` then. ``named`` is what it names now."""

    name: str
    manifest: Manifest
    ref: Ref
    version: str | None
    named: str


def optimize(
    store: ObjectStore,
    image: str,
    find: FindProfile,
    *,
    keep: KeepProfile = lambda _: None,
    to: Ref | None = None,
    threads: int = THREADS,
    progress: Callable[[Progress], None] | None = None,
) -> OptimizeReport:
    """Optimize ``image`` (a ref, or a digest with ``to``) by what ``find`` returns, and let its ref, or ``to``, name the result.

    ``keep`` is given the same profile for the result, which would have none at its first start otherwise.
    ``NotFoundError`` if there is no such image, no profile, or nothing in it of this image; ``ConflictError`` if the ref was changed
    meanwhile; ``IntegrityError`` for damaged content; the store's errors. Then the ref is as it was, and what was stored is used by the
    next try.
    """
    tell = progress or (lambda _: None)
    clock = Clock()
    # What lies in the scratch directory is mapped and unlinked at once.
    with Writing(store, "optimize") as lease, tempfile.TemporaryDirectory(prefix="imagefs-optimize-") as folder:
        maps = _Maps(store, Path(folder))
        with clock.stage("read"):
            target = _target(store, image, to)
            origin, base = origin_of(store, target.name, target.manifest)
            profile = _profile(find, image, target.name, origin)
            objects = maps.of(base)
        with clock.stage("plan"):
            planned = plan(objects, profile.accesses, frame_size=base.frame_size)
            if not planned.frames:
                raise NotFoundError(f"the profile touches nothing of {image}: {_why(planned)}", hint=_RECORD)
            digest = digest_of(encode(profile)).hex()
            before = start_of(maps.of(target.manifest), profile.accesses)
            report = _Report(target, origin, digest, profile, planned, before, clock)
            for name, after in _there(store, maps, report):
                return report.made(store, name, after)
        return _lay_out(store, base, objects, report, keep, lease=lease, threads=threads, tell=tell)


def _there(store: ObjectStore, maps: "_Maps", report: "_Report") -> Iterator[tuple[str, Start]]:
    """Yield the images at hand that this profile has optimized already, and a start from each."""
    target = report.target
    for name in dict.fromkeys(filter(None, (target.name, target.named))):
        with suppress(NotFoundError, IntegrityError, UnsupportedError):
            manifest = target.manifest if name == target.name else get_manifest(store, name)
            said = optimized.read(manifest.annotations)
            if said is None or manifest.tree != target.manifest.tree or (said.profile, said.layout) != (report.digest, LAYOUT):
                continue
            # Annotations may have come with the source: they count if they are true.
            if (found := start_of(maps.of(manifest), report.profile.accesses)) == said.after:
                yield name, found


def _lay_out(
    store: ObjectStore,
    base: Manifest,
    objects: ObjectMap,
    report: "_Report",
    keep: KeepProfile,
    *,
    lease: Writing,
    threads: int,
    tell: Callable[[Progress], None],
) -> OptimizeReport:
    """Write the packs, the object map, the manifest, its profile, and the ref."""
    planned, clock, target = report.plan, report.clock, report.target
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        tell(Progress("repack", done, planned.content))

    with clock.stage("repack"), Repacker(store, objects, threads=threads, told=told) as repacker:
        packs = repacker.run(planned)
    report.packs, report.packs_new = len(packs), sum(pack.new for pack in packs)
    report.new_bytes = sum(pack.size for pack in packs if pack.new)
    with clock.stage("map"):
        raw = relocated(objects, planned.moves, [(pack.digest, pack.key, pack.size, pack.entries) for pack in packs])
        after = start_of(ObjectMap(raw), report.profile.accesses)
        if digest_of(raw).hex() == target.manifest.objects.digest:
            # Another profile, but it says the same of what matters here: no reason to make another image of it.
            return report.made(store, target.name, after)
        map_name, map_new = put_blob(store, raw)
    before = start_of(objects, report.profile.accesses)
    made = Optimized(report.origin, report.digest, LAYOUT, before, after)
    manifest = msgspec.structs.replace(base, objects=BlobName(map_name, len(raw)), annotations=optimized.annotated(base.annotations, made))
    with clock.stage("publish"):
        lease.publishing()
        name, manifest_new = put_manifest(store, manifest)
        report.new_bytes += map_new + manifest_new
        keep(replace(report.profile, manifest=name))
        return report.made(store, name, after)


@dataclass(slots=True)
class _Report:
    """What is known of an optimization so far."""

    target: _Target
    origin: str
    digest: str
    profile: Profile
    plan: Plan
    before: Start
    clock: Clock
    packs: int = 0
    packs_new: int = 0
    new_bytes: int = 0

    def made(self, store: ObjectStore, name: str, after: Start) -> OptimizeReport:
        """Let the ref name manifest ``name`` unless it does; return the report."""
        changed = name != self.target.named
        if changed:
            move(store, self.target.ref, name, version=self.target.version)
        planned = self.plan
        return OptimizeReport(
            ref=str(self.target.ref),
            manifest=name,
            origin=self.origin,
            changed=changed,
            profile=self.digest,
            starts=self.profile.starts,
            accesses=len(self.profile.accesses),
            used=planned.used,
            rare=planned.rare,
            foreign=planned.foreign,
            before=self.before,
            after=after,
            objects=len(planned.moves),
            frames=len(planned.frames),
            content=planned.content,
            packs=self.packs,
            packs_new=self.packs_new,
            new_bytes=self.new_bytes,
            seconds={stage: round(seconds, 4) for stage, seconds in self.clock.seconds.items()},
        )


def _target(store: ObjectStore, image: str, to: Ref | None) -> _Target:
    """Read which image is meant, and which ref is to be written."""
    if to is None:
        if "@" in image or is_hex_digest(image):
            raise UsageError(f"{image} is a digest, which names one image for ever", hint="--to REF names the optimized one")
        ref = Ref.parse(image)
        document, version = read_versioned(store, ref)
        return _Target(document.manifest, _image(store, document.manifest), ref, version, document.manifest)
    name = resolve(store, image)
    there, named = version_of(store, to), ""
    if there is not None:
        with suppress(NotFoundError, IntegrityError, UnsupportedError):
            named = read(store, to).manifest
    return _Target(name, _image(store, name), to, there, named)


def _image(store: ObjectStore, name: str) -> Manifest:
    found = get_manifest(store, name)
    if found.kind != IMAGE:
        raise UnsupportedError(f"a {found.kind} cannot be optimized: its frames are those of others too")
    return found


def _profile(find: FindProfile, image: str, name: str, origin: str) -> Profile:
    """Return the profile of the image's starts; of its origin's where it has none of its own. It is as if it were the origin's.

    An optimized image begins with the profile that it was made by (``optimize``), so what its own says has that in it.
    """
    found = find(name) or (find(origin) if origin != name else None)
    if found is None:
        raise NotFoundError(f"there is no profile of {image} to optimize it by", hint=_RECORD)
    return replace(found, manifest=origin)


def _why(planned: Plan) -> str:
    if planned.used:
        return "what it touches is all holes"
    parts = [
        *([f"{planned.foreign} of its accesses are of other content"] if planned.foreign else []),
        *([f"{planned.rare} are of fewer than a quarter of the starts"] if planned.rare else []),
    ]
    return ", ".join(parts) or "it is empty"


class _Maps:
    """Object maps, read in place from files below ``scratch`` that have no name any more."""

    def __init__(self, store: ObjectStore, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch
        self._opened: dict[BlobName, ObjectMap] = {}

    def of(self, manifest: Manifest) -> ObjectMap:
        """Return the object map of an image."""
        blob = manifest.objects
        if blob not in self._opened:
            path = self._scratch / blob.digest
            fetch_blob_to(self._store, blob.digest, blob.size, path)
            with path.open("rb") as file:
                self._opened[blob] = ObjectMap(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            path.unlink()
        return self._opened[blob]
