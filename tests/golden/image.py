"""The golden image: made by code, converted by the command, known by its digests in ``format-1.json``."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from tests.corpus import rawtar as t
from tests.corpus.features import ROOT, noise, text
from tests.corpus.oci import Image, Layer, layout
from tests.system.world import World

GOLDEN: Final = Path(__file__).with_name("format-1.json")
"""The digests of the golden image in format 1."""


def golden_layout(path: Path) -> Path:
    """Write the source: one of every kind of inode, inlined, small and large files, holes, xattrs, links, and two layers."""
    lower = t.archive(
        ROOT,
        t.directory(b"bin", 0o755),
        t.file(b"bin/program", noise(700_000, b"program"), mode=0o4755, records={b"SCHILY.xattr.security.capability": bytes(range(20))}),
        t.file(b"bin/text", text(300_000), uid=70_000, gid=80_000, records={b"mtime": b"1700000000.123456789"}),
        t.symlink(b"bin/link", b"text"),
        t.hardlink(b"bin/also", b"bin/text"),
        t.file(b"inlined", b"i" * 64),
        t.file(b"not-inlined", b"n" * 65),
        t.file(b"empty"),
        t.file(b"\xff\xfe", b"a name that is not UTF-8"),
        t.member(b"null", t.CHAR, major=1, minor=3, mode=0o666),
        t.member(b"fifo", t.FIFO, mode=0o600),
        t.directory(b"old"),
        t.file(b"old/x", b"hidden"),
        *[t.file(b"many/%03d" % number, text(number * 11)) for number in range(200)],
        # Enough small and medium files for frames and packs to end where digests say so, and where they are full.
        *[t.file(b"packs/%03d" % number, noise(3_000 + number * 977 % 61_000, b"%d" % number)) for number in range(240)],
        *[t.file(b"packs/m%02d" % number, noise(300_000 + number * 40_000, b"m%d" % number)) for number in range(8)],
    )
    sparse = {
        b"GNU.sparse.major": b"0",
        b"GNU.sparse.minor": b"1",
        b"GNU.sparse.size": b"3000000",
        b"GNU.sparse.numblocks": b"2",
        b"GNU.sparse.map": b"1048576,4096,2097152,4096",
    }
    upper = t.archive(
        t.whiteout(b"old"),
        t.directory(b"tmp", 0o1777, records={b"SCHILY.xattr.user.note": b"\0\xff"}),
        t.file(b"sparse", noise(8192, b"sparse"), records=sparse),
        t.file(b"large", text(1_500_000)),
    )
    platform = {"os": "linux", "architecture": "amd64"}
    return layout(path, Image([Layer(lower, ""), Layer(upper, "")], platform=platform))


def golden_digests(world: World, scratch: Path) -> dict[str, Any]:
    """Convert the golden image; return its digests, those of its source first: if they differ, the source is another one."""
    source = golden_layout(scratch / "golden")
    figures = world.convert(f"oci:{source}", "golden", "--platform", "linux/amd64")
    manifest = json.loads(world.published()[f"manifests/{figures['manifest']}"])
    return {
        "source": hashlib.sha256((source / "index.json").read_bytes()).hexdigest(),
        "manifest": figures["manifest"],
        "tree": manifest["tree"]["digest"],
        "objects": manifest["objects"]["digest"],
        "packs": sorted(path.name for path in (world.store / "packs").iterdir()),
    }
