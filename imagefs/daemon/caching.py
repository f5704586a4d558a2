"""What can be asked of the SSD tier: by the daemon for whoever asks it, or by a command of its own where no daemon runs."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import trio

from imagefs.cache.disk_open import OpenedTier
from imagefs.cache.disk_place import ASIDE
from imagefs.cache.holdings import local_objects
from imagefs.daemon import requests
from imagefs.errors import NotFoundError, UsageError

_ALL = 1 << 62
_SETTLE_SECONDS = 5.0


@dataclass(slots=True)
class CacheService:
    """``resolve`` turns a ref into a manifest's hex digest; ``bring`` brings an image's index to this host. Both block."""

    opened: OpenedTier
    resolve: Callable[[str], str]
    bring: Callable[[str], object]

    async def handle(self, request: requests.Cache) -> dict[str, object]:
        """Do what is asked; raise an ``ImageFSError`` if it cannot be done."""
        if request.action in {"verify", "evict", "clear"}:
            # What was read a moment ago is meant too; where reading goes on there is no end to wait for.
            with trio.move_on_after(_SETTLE_SECONDS):
                await self.opened.tier.settled()
        match request.action:
            case "status":
                return await self._status()
            case "verify":
                return dict(await self.opened.checker.verify())
            case "limit":
                self.opened.tier.set_bounds(request.limit, request.floor)
                return await self._status()
            case "clear":
                return await self._clear(pinned=request.pinned)
            case "pin" | "unpin" | "evict":
                return await self._of_image(request)
        raise UsageError(f"no such action: {request.action!r}")

    async def _status(self) -> dict[str, object]:
        opened = self.opened
        status = await trio.to_thread.run_sync(opened.tier.status)
        pins = await trio.to_thread.run_sync(opened.index.pins)
        return {
            "cache": str(opened.place.root),
            **status,
            "pins": [{"manifest": manifest, "ref": ref} for manifest, ref in sorted(pins.items())],
            "warnings": opened.place.warnings,
        }

    async def _clear(self, *, pinned: bool) -> dict[str, object]:
        freed = await self.opened.tier.evict(_ALL, pinned=pinned)
        await trio.to_thread.run_sync(lambda: shutil.rmtree(self.opened.place.root / ASIDE, ignore_errors=True))
        return {"freed_bytes": freed}

    async def _of_image(self, request: requests.Cache) -> dict[str, object]:
        if not request.ref:
            if request.action == "evict":
                return {"freed_bytes": await self.opened.tier.evict(request.bytes or _ALL)}
            raise UsageError("which image?", hint="name a ref")
        manifest = await trio.to_thread.run_sync(self.resolve, request.ref)
        index = self.opened.index
        if request.action == "pin":
            await trio.to_thread.run_sync(self.bring, manifest)
            new = await trio.to_thread.run_sync(index.pin, manifest, request.ref)
            return {"manifest": manifest, "changed": new}
        if request.action == "unpin":
            if not await trio.to_thread.run_sync(index.unpin, manifest):
                raise NotFoundError(f"{request.ref} is not pinned", hint="`imagefs cache status` lists the pins")
            return {"manifest": manifest, "changed": True}
        objects = await trio.to_thread.run_sync(local_objects, self.opened.place.root, manifest)
        if objects is None:
            return {"manifest": manifest, "freed_bytes": 0}

        def wanted(name: bytes) -> bool:
            return objects.find(name) is not None

        return {"manifest": manifest, "freed_bytes": await self.opened.tier.evict(request.bytes or _ALL, wanted=wanted)}
