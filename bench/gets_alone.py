"""``python -m bench.gets_alone REF NAME [--size]``: what getting a file's frames costs without a daemon.

The same ranged GETs, in as many threads as the link starts with, each decompressed and verified, nothing else. Prints wall seconds and CPU
seconds; with ``--size`` the bytes that the GETs move instead.
"""

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

import zstandard

from imagefs.cache.image import open_image
from imagefs.cache.pace import START
from imagefs.cache.planner import Run, plan_runs
from imagefs.config import load_config
from imagefs.format.objectmap import HOLE
from imagefs.format.pack import decode_frame
from imagefs.store.base import ByteRange, pack_key
from imagefs.store.opening import open_store
from imagefs.store.refs import resolve


def main() -> None:
    """Do it."""
    ref, name = sys.argv[1:3]
    store = open_store(load_config().store)
    contexts = local()
    with tempfile.TemporaryDirectory() as scratch:
        image = open_image(store, Path(scratch), resolve(store, ref))
        nid = image.tree.lookup(image.tree.root, name.encode())
        assert nid is not None
        digest = image.tree.object_of(nid)
        assert digest is not None
        row = image.objects.find(digest)
        assert row is not None
        extents = [extent for extent in image.objects.extents(row, 0, row.size) if extent.frame != HOLE]
        runs = plan_runs((number, image.objects.frame(extent.frame)) for number, extent in enumerate(extents))
        if "--size" in sys.argv:
            sys.stdout.write(f"{sum(run.end - run.start for run in runs)}\n")
            return

        def bring(run: Run[int]) -> None:
            data = memoryview(store.get(pack_key(image.objects.pack(run.pack).digest.hex()), ByteRange(run.start, run.end)))
            context = getattr(contexts, "zstd", None)
            if context is None:
                context = contexts.zstd = zstandard.ZstdDecompressor()
            for frame, _ in run.grouped():
                at = frame.offset - run.start
                decode_frame(data[at : at + frame.stored], frame.codec, frame.length, frame.digest, context)

        start, before = time.perf_counter(), os.times()
        with ThreadPoolExecutor(START) as pool:
            list(pool.map(bring, runs))
        after = os.times()
        sys.stdout.write(f"{time.perf_counter() - start} {after.user + after.system - before.user - before.system}\n")


if __name__ == "__main__":
    main()
