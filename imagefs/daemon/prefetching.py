"""Prefetching of images: for those that are mounted, from their profiles, and for who asks for one without a mount.

What a profile costs the mount is nothing: it is looked for while the index comes, and followed when the image is there. What this host has
of it is followed at once, what the store has when it comes; where there is neither, that of an image that is much like it
(``inheriting``). That is of all programs of the image; as soon as it is known which of them runs (``programs``), what starts of that one
touched is followed instead, and where there are none, it is followed no further than it proves to help. A worker that takes over goes on
with mounts that were made a moment ago: what was fetched is on SSD.

Invariants: nothing here fails a mount or delays it, but for who asked to wait; a profile that cannot be had or read is told in the log and
is as good as none; an image's prefetch ends with its last mount.

All of it belongs to the trio thread; what blocks runs in threads. What does not live here: the fetching (``imagefs.cache.prefetch``), and
where profiles are kept (``Profiles``).
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import structlog
import trio

from imagefs.cache.completion import Completion
from imagefs.cache.image import Image
from imagefs.cache.prefetch import Prefetch
from imagefs.cache.prefetches import Prefetches
from imagefs.daemon import requests
from imagefs.daemon.inheriting import KeptProfiles, Relatives, best_of, is_news
from imagefs.daemon.programs import Programs, Running, choose
from imagefs.errors import ImageFSError
from imagefs.format import optimized
from imagefs.format.profile import Key, Profile, select
from imagefs.mount.table import MountRecord

_T = TypeVar("_T")

_STORE_SECONDS: Final = 30.0
"""For so long the store is waited for: by then a program has started."""

_START_SECONDS: Final = 120.0
"""So long after its mount a program may be starting."""

_FOLLOWED_MAX: Final = 16

_NEWS_SECONDS: Final = 5.0
"""A mount that follows another of the same image within so long does not look for a profile again: many may be made at once."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A profile that an image's prefetch has followed, and what it comes to in that image: bytes of content, and as stored."""

    profile: Profile
    content: int
    stored: int


_NOBODY: Final = ""
"""In place of a mountpoint: who asked for an image without a mount wants what all of its programs need."""


@dataclass(slots=True, eq=False)
class _Following:
    """What an image's prefetch follows: ``source`` is what was found, of all programs; ``keys`` what of it is followed, all if empty."""

    image: Image
    prefetch: Prefetch
    ahead: "Ahead"
    source: Profile | None = None
    last: Profile | None = None
    keys: frozenset[Key] = frozenset()
    lock: trio.Lock = field(default_factory=trio.Lock)


class Ahead:
    """One request's prefetch: the profile is looked for from the beginning, and followed from when the image is there."""

    def __init__(self, owner: "Prefetching", manifest: str, request: requests.Mount | requests.Prefetch) -> None:
        """``Prefetching.ahead_of`` makes these."""
        self.manifest = manifest
        self.ref = request.ref
        self.key = Key(label=request.label) if request.label else None
        self.looks = False
        """Whether it is being looked for a profile: not if another request has just done so."""
        self._owner = owner
        self._prefetch: Prefetch | None = None
        # What this host has, then what the store has.
        self.tell, self.found = trio.open_memory_channel[Profile | None](2)

    @property
    def share(self) -> float:
        """How much of what the profile names is here, of 1."""
        return self._prefetch.share if self._prefetch is not None else 0.0

    @property
    def content(self) -> int:
        """Bytes of content that the profile names."""
        return self._prefetch.content if self._prefetch is not None else 0

    def begin(self, image: Image) -> None:
        """Follow the profile, of an image that is mounted."""
        self._prefetch = self._owner.begin(image, self)

    async def mounted(self, image: Image, wait: float) -> None:
        """Take note that it is mounted; return when that share of it is here, or no more of it is to be expected."""
        self._owner.complete(image)
        if wait > 0 and self._prefetch is not None:
            await self._prefetch.reached(wait)

    def warm(self, image: Image) -> None:
        """Follow the profile of an image that need not be mounted, to the end."""
        self.begin(image)
        self._owner.hold(self)

    async def done(self) -> None:
        """Wait until it is here, or no more of it comes."""
        if self._prefetch is not None:
            await self._prefetch.reached(1.0)

    async def over(self) -> None:
        """Wait until nothing more comes, of what few starts touch either."""
        if self._prefetch is not None:
            await self._prefetch.done()


class Prefetching:
    """See the module."""

    def __init__(
        self,
        nursery: trio.Nursery,
        prefetches: Prefetches,
        profiles: KeptProfiles,
        relatives: Relatives,
        *,
        completion: Completion | None,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """``completion`` brings what no profile names; None where that is off."""
        self._nursery = nursery
        self._prefetches = prefetches
        self._profiles = profiles
        self._relatives = relatives
        self._completion = completion
        self._log = log
        # Images that are to be made warm, mounted or not.
        self._held: list[Ahead] = []
        self._followed: dict[str, Followed] = {}
        self._following: dict[str, _Following] = {}
        self._programs = Programs()
        self._asked: dict[tuple[str, Key | None], float] = {}

    def followed(self, manifest: str) -> Followed | None:
        """Return what an image's prefetch followed last, if that was not long ago."""
        return self._followed.get(manifest)

    @property
    def is_busy(self) -> bool:
        """Whether somebody has asked for an image without a mount that is not here yet."""
        return bool(self._held)

    def ahead_of(self, manifest: str, request: requests.Mount | requests.Prefetch) -> Ahead:
        """Begin to look for an image's profile, while its index comes."""
        ahead = Ahead(self, manifest, request)
        now = trio.current_time()
        self._asked = {asked: at for asked, at in self._asked.items() if now - at < _NEWS_SECONDS}
        if (manifest, ahead.key) not in self._asked:
            self._begin_to_look(ahead)
        return ahead

    def _begin_to_look(self, ahead: Ahead) -> None:
        self._asked[ahead.manifest, ahead.key] = trio.current_time()
        ahead.looks = True
        self._nursery.start_soon(self._look, ahead)

    def resume(self, images: Mapping[int, Image], table: Iterable[MountRecord]) -> None:
        """Go on with what the worker before this one was fetching for mounts that were made a moment ago."""
        for record in table:
            if record.prefetch and record.slot in images and time.time() - record.mounted_at < _START_SECONDS:
                request = requests.Prefetch(ref=record.ref, label=record.label)
                self.begin(images[record.slot], self.ahead_of(record.manifest, request))

    def begin(self, image: Image, ahead: Ahead) -> Prefetch:
        """Fetch what is found, now and as it comes; join what is under way for that image."""
        running = self._prefetches.of(image.name)
        if running is not None and not (running.is_over and ahead.looks):
            ahead.found.close()
            return running
        if not ahead.looks:
            self._begin_to_look(ahead)
        prefetch = self._prefetches.begin(image)
        following = self._following[image.name] = _Following(image, prefetch, ahead)
        self._nursery.start_soon(prefetch.run)
        self._nursery.start_soon(self._follow, following)
        return prefetch

    def hold(self, ahead: Ahead) -> None:
        """Go on with it although the image is not mounted, and let go of it when it is done."""
        self._held.append(ahead)
        self.expects(ahead.manifest, _NOBODY)
        self._nursery.start_soon(self._let_go, ahead)

    async def _let_go(self, ahead: Ahead) -> None:
        try:
            await ahead.over()
        finally:
            self._held.remove(ahead)
            if ahead.manifest not in {other.manifest for other in self._held}:
                self.gone(ahead.manifest, _NOBODY)

    def complete(self, image: Image) -> None:
        """Bring all of an image in the background, if that is wanted on this host."""
        if self._completion is not None:
            self._nursery.start_soon(self._completion.run, image)

    def keep(self, mounted: Collection[str]) -> None:
        """End what is not for one of the images that are ``mounted``, and nobody has asked for."""
        held = {ahead.manifest for ahead in self._held}
        for name in self._prefetches.names():
            if name not in mounted and name not in held:
                self._prefetches.drop(name)
                self._following.pop(name, None)
        if self._completion is not None:
            self._completion.keep(mounted)

    # -- which program runs ---------------------------------------------------------------------------------------------------------

    def expects(self, manifest: str, mountpoint: str) -> None:
        """Note that a program is about to start at a mount, of which nothing is known yet."""
        self._programs.expect(manifest, mountpoint)
        self._aim_anew(manifest)

    def runs(self, manifest: str, mountpoint: str, key: Key, *, settled: bool) -> None:
        """Note whose start it is; ``settled``: it will not become another program any more."""
        if self._programs.found(manifest, mountpoint, key, settled=settled):
            self._aim_anew(manifest)

    def gone(self, manifest: str, mountpoint: str) -> None:
        """Note that its start is over. What is followed stays as it is."""
        self._programs.gone(manifest, mountpoint)

    def opened(self, manifest: str, digest: bytes) -> None:
        """Note that an object is opened that the kernel has."""
        self._prefetches.opened(manifest, digest)

    def _aim_anew(self, manifest: str) -> None:
        following = self._following.get(manifest)
        if following is not None and not following.prefetch.is_over and following.source is not None:
            self._nursery.start_soon(self._aim, following)

    async def _aim(self, following: _Following) -> None:
        """Follow what of the source is of the programs that run, as far as that is known."""
        name, prefetch = following.image.name, following.prefetch
        async with following.lock:
            source, running = following.source, self._programs.of(following.image.name)
            if source is None or prefetch.is_over:
                return
            found = await self._ask(partial(_narrowed, self._profiles, source, running), following.ahead) if running else None
            keys, chosen, stranger = found if found is not None else (frozenset[Key](), None, False)
            profile = source if chosen is None else chosen
            if following.last is not source or following.keys != keys:
                following.last, following.keys = source, keys
                await prefetch.follow(profile.accesses, chosen=chosen is not None)
                self._note_followed(name, Followed(profile, prefetch.content, prefetch.stored))
                if chosen is not None:
                    self._log.info("profile_narrowed", manifest=name, starts=profile.starts, accesses=len(profile.accesses))
            if stranger:
                prefetch.doubt()

    # -- where a profile comes from -------------------------------------------------------------------------------------------------

    async def _look(self, ahead: Ahead) -> None:
        """Send what this host has, then what the store has."""
        async with ahead.tell:
            for source in (self._profiles.kept, self._profiles.fetch):
                found = await self._ask(lambda ask=source: ask(ahead.manifest, ahead.key), ahead)  # type: ignore[misc] # called at once
                try:
                    await ahead.tell.send(found)
                except trio.BrokenResourceError:
                    return

    async def _follow(self, following: _Following) -> None:
        """Follow what this host has, of a relative if it must be, and then what the store has, if that says more."""
        image, ahead, relatives = following.image, following.ahead, self._relatives
        objects = image.objects
        origin = "host"
        try:
            async with ahead.found:
                last = await ahead.found.receive()
                own = last is not None
                if last is None:
                    origin = "relative"
                    last = await self._ask(lambda: best_of(relatives.kept(image.name, ahead.ref, origin_of(image)), objects), ahead)
                if last is not None:
                    await self._take(following, last)
                stored = await ahead.found.receive()
            if stored is not None and (last is None or not own or await self._is_news(stored, last, ahead)):
                origin, last = "store", stored
                await self._take(following, stored)
            if last is None:
                origin = "relative"
                last = await self._ask(lambda: best_of(relatives.stored(image.name, ahead.ref, origin_of(image)), objects), ahead)
                if last is not None:
                    await self._take(following, last)
            if last is not None:
                self._log.info("profile_followed", manifest=image.name, origin=origin, starts=last.starts, accesses=len(last.accesses))
        except trio.EndOfChannel:
            pass
        finally:
            following.prefetch.complete()

    async def _is_news(self, stored: Profile, kept: Profile, ahead: Ahead) -> bool:
        return stored is not kept and bool(await self._ask(partial(is_news, stored, kept), ahead))

    async def _take(self, following: _Following, profile: Profile) -> None:
        following.source = profile
        await self._aim(following)

    def _note_followed(self, name: str, followed: Followed) -> None:
        self._followed.pop(name, None)
        while len(self._followed) >= _FOLLOWED_MAX:
            del self._followed[next(iter(self._followed))]
        self._followed[name] = followed

    async def _ask(self, question: Callable[[], _T | None], ahead: Ahead) -> _T | None:
        """Ask in a thread; None if the answer is an error, or does not come."""
        try:
            with trio.move_on_after(_STORE_SECONDS):
                return await trio.to_thread.run_sync(question, abandon_on_cancel=True)
        except ImageFSError as error:
            self._log.warning("profile_unusable", manifest=ahead.manifest, error=error.message)
        except Exception:  # noqa: BLE001 # a guess must not end the daemon
            self._log.exception("profile_bug", manifest=ahead.manifest)
        return None


def _narrowed(profiles: KeptProfiles, source: Profile, running: Collection[Running]) -> tuple[frozenset[Key], Profile | None, bool]:
    """Return which keys of a profile's image are of the programs that run, what their starts touch, and whether there are surely none.

    Nothing to follow where that is all that there is, or nobody can say. Blocks.
    """
    samples = profiles.samples(source.manifest)
    choice = choose({sample.profile.key for sample in samples}, running)
    mine = [sample for sample in samples if sample.profile.key in choice.keys]
    if not mine or len(mine) == len(samples):
        return frozenset(), None, choice.stranger
    return choice.keys, select(mine, None), False


def origin_of(image: Image) -> str:
    """Return what an optimized image was made from; nothing for another one. Only its profile is taken from there."""
    found = optimized.read(image.manifest.annotations)
    return "" if found is None else found.origin
