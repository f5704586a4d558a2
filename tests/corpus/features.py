"""What an image may hold, one small image a feature, each made from raw headers.

A feature says in which layers it lies, and what must come out of it where umoci, with which every other is compared, is no reference.
"""

import gzip
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import zstandard

from tests.corpus import rawtar as t
from tests.corpus.oci import Layer

ROOT: Final = t.directory(b"./")
_TIME: Final = frozenset({"mtime_ns"})
"""What umoci leaves behind where it made, or removed something in, a directory after it had set the time of it."""

_NS: Final = 1_700_000_000_123_456_789


def noise(size: int, seed: bytes = b"") -> bytes:
    """Return bytes that do not shrink, the same ones each time."""
    return hashlib.shake_128(b"noise" + seed).digest(size)


def text(size: int) -> bytes:
    """Return bytes that shrink, without a period that a frame could hide."""
    return b"".join(b"line %d of a text\n" % number for number in range(size // 12 + 1))[:size]


@dataclass(frozen=True)
class Feature:
    """``layers`` bottom first. ``expect`` is checked by path and field; ``reference`` are the same layers in a form that umoci reads.

    ``odd`` says why umoci is no reference: then ``expect`` names every path but the root. ``ignore`` lists the fields, by path, where
    umoci leaves its own mark.
    """

    layers: Sequence[Layer | bytes]
    expect: Mapping[bytes, Mapping[str, Any]] = field(default_factory=dict)
    reference: Sequence[Layer | bytes] | None = None
    odd: str = ""
    ignore: Mapping[bytes, frozenset[str]] = field(default_factory=dict)


def _tar(*members: bytes) -> bytes:
    return t.archive(ROOT, *members)


def _x(**attributes: bytes) -> dict[bytes, bytes]:
    return {b"SCHILY.xattr." + key.replace("__", ".").encode(): value for key, value in attributes.items()}


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """Return a POSIX ACL as the kernel stores it: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_NONE: Final = 0xFFFFFFFF
_ACCESS: Final = _acl((1, 7, _NONE), (2, 5, 70000), (4, 5, _NONE), (16, 5, _NONE), (32, 4, _NONE))
_DEFAULT: Final = _acl((1, 7, _NONE), (4, 5, _NONE), (8, 7, 1234), (16, 7, _NONE), (32, 0, _NONE))
_CAPABILITY: Final = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
"""cap_net_raw=ep, as ``setcap`` stores it."""

_SIZES: Final = (0, 1, 63, 64, 65, 4095, 4096, 4097, 262_143, 262_144, 262_145, (1 << 20) + 3)

_DATA: Final[dict[str, Feature]] = {
    "nothing_but_a_root": Feature([_tar()]),
    "no_root_entry": Feature([t.archive(t.file(b"a", b"1"))], ignore={b"": frozenset({"mtime_ns", "mode"})}),
    "an_empty_layer": Feature([t.archive(), _tar(t.file(b"a", b"1")), t.archive()]),
    "every_kind": Feature(
        [
            _tar(
                t.file(b"file", b"content"),
                t.directory(b"dir", 0o711, uid=3, gid=4),
                t.symlink(b"symlink", b"file"),
                t.hardlink(b"hardlink", b"file"),
                t.member(b"char", t.CHAR, major=1, minor=3, mode=0o666),
                t.member(b"block", t.BLOCKDEV, major=259, minor=70000, mode=0o660),
                t.member(b"fifo", t.FIFO, mode=0o600),
            )
        ],
        expect={b"file": {"nlink": 2, "links": frozenset({b"file", b"hardlink"})}},
    ),
    "file_sizes": Feature(
        [
            _tar(
                t.directory(b"text"),
                t.directory(b"noise"),
                t.directory(b"zeros"),
                *[t.file(b"text/%d" % size, text(size)) for size in _SIZES],
                *[t.file(b"noise/%d" % size, noise(size)) for size in _SIZES],
                *[t.file(b"zeros/%d" % size, bytes(size)) for size in _SIZES],
            )
        ]
    ),
    "modes": Feature([_tar(*[t.file(b"%04o" % mode, b"x", mode=mode) for mode in (0o4755, 0o2755, 0o1644, 0o7777, 0, 0o400)])]),
    "directory_modes": Feature([_tar(*[t.directory(b"%04o" % mode, mode) for mode in (0o1777, 0o2775, 0o7777, 0o700, 0o111)])]),
    "owners": Feature(
        [
            _tar(
                t.file(b"octal", uid=65_535, gid=65_536),
                t.file(b"seventy", uid=70_000, gid=2_097_151),
                t.file(b"base256", uid=3_000_000, gid=4_294_967_294),
                t.file(b"pax", records={b"uid": b"4294967294", b"gid": b"70000"}),
                t.file(b"names_do_not_count", records={b"uname": b"nobody", b"gname": b"daemon"}),
            )
        ],
        expect={b"base256": {"uid": 3_000_000, "gid": 4_294_967_294}, b"pax": {"uid": 4_294_967_294, "gid": 70_000}},
    ),
    "times": Feature(
        [
            _tar(
                t.file(b"nanoseconds", records={b"mtime": b"1700000000.123456789"}),
                t.directory(b"directory", records={b"mtime": b"1700000000.000000001"}),
                t.symlink(b"symlink", b"x", records={b"mtime": b"1600000000.5"}),
                t.file(b"epoch", mtime=0),
                t.file(b"before", records={b"mtime": b"-1.25"}),
                t.file(b"before_base256", mtime=-100),
                t.file(b"late", mtime=7_258_118_400),
                t.file(b"finer", records={b"mtime": b"1700000000.1234567891"}),
                t.file(b"other_times", records={b"atime": b"1500000000.1", b"ctime": b"1500000000.2"}),
            )
        ],
        expect={
            b"nanoseconds": {"mtime_ns": _NS},
            b"before": {"mtime_ns": -1_250_000_000},
            b"before_base256": {"mtime_ns": -100_000_000_000},
            b"late": {"mtime_ns": 7_258_118_400_000_000_000},
        },
    ),
    "names": Feature(
        [
            _tar(
                *[
                    t.file(name, name)
                    for name in (
                        b"\xff\xfe\x80",
                        "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode(),
                        b"cafe\xcc\x81",
                        b"new\nline",
                        b" space ",
                        b"back\\slash",
                        b"tab\t",
                        b"!before.dot",
                        b"...",
                        b".hidden",
                        b"wh.not",
                        b".whnot",
                        b"UPPER",
                        b"upper",
                        b"a=b",
                        b"%s",
                        b"*",
                        b"x" * 255,
                        b"\xe6" * 255,
                    )
                ]
            )
        ]
    ),
    "spelled_with_dots": Feature([_tar(t.directory(b"./d/"), t.file(b"./d/a", b"1"), t.file(b"d/./b", b"2"), t.file(b"d//c", b"3"))]),
    "absolute_paths": Feature(
        [_tar(t.directory(b"/d"), t.file(b"/d/a", b"1"), t.file(b"x", b"1", records={b"path": b"/d/b"}), t.hardlink(b"/c", b"/d/a"))]
    ),
    "path_of_3800_bytes": Feature([_tar(*[t.directory(b"/".join([b"d" * 189] * (depth + 1))) for depth in range(20)])]),
    "path_of_4095_bytes": Feature(
        [
            _tar(
                *[t.directory(b"/".join([b"d" * 254] * (depth + 1))) for depth in range(16)],
                t.file(b"/".join([b"d" * 254] * 16) + b"/" + b"f" * 15, b"x"),
            )
        ],
        expect={
            **{b"/".join([b"d" * 254] * (depth + 1)): {"kind": "directory"} for depth in range(16)},
            b"/".join([b"d" * 254] * 16) + b"/" + b"f" * 15: {"kind": "file", "size": 1},
        },
        odd="it cannot name such a path from outside",
    ),
    "path_of_4096_bytes": Feature(
        [
            _tar(
                *[t.directory(b"/".join([b"d" * 254] * (depth + 1))) for depth in range(16)],
                t.file(b"/".join([b"d" * 254] * 16) + b"/" + b"f" * 16, b"x"),
            )
        ],
        expect={
            **{b"/".join([b"d" * 254] * (depth + 1)): {"kind": "directory"} for depth in range(16)},
            b"/".join([b"d" * 254] * 16) + b"/" + b"f" * 16: {"kind": "file", "size": 1},
        },
        odd="it cannot name such a path from outside",
    ),
    "gnu_long_names": Feature(
        [
            _tar(
                t.directory(b"d" * 90),
                t.gnu_long(b"d" * 90 + b"/" + b"f" * 200)
                + t.header((b"d" * 90 + b"/" + b"f" * 200)[:100], size=2, magic=b"ustar  \0")
                + t.pad(b"ok"),
                t.gnu_long(b"t" * 500, b"K") + t.header(b"link", t.SYMLINK, link=b"t" * 100, mode=0o777, magic=b"ustar  \0"),
            )
        ]
    ),
    "ustar_prefix": Feature(
        [
            _tar(
                t.directory(b"p" * 100),
                t.directory(b"p" * 100 + b"/q"),
                t.header(b"name", size=3, prefix=b"p" * 100 + b"/q") + t.pad(b"yes"),
            )
        ]
    ),
    "old_headers": Feature(
        [_tar(t.header(b"v7", b"\0", size=2, magic=bytes(8)) + t.pad(b"v7"), t.header(b"contiguous", b"7", size=1) + t.pad(b"c"))],
        expect={b"v7": {"kind": "file", "size": 2}, b"contiguous": {"kind": "file", "size": 1}},
        odd="it does not know contiguous files",
    ),
    "global_headers": Feature(
        [t.archive(t.pax({b"comment": b"a" * 40}, b"g"), ROOT, t.file(b"a", b"1"))],
        expect={b"a": {"size": 1}},
        odd="it does not read global headers",
    ),
    "symlinks": Feature(
        [
            _tar(
                t.directory(b"d"),
                t.symlink(b"dangling", b"nowhere"),
                t.symlink(b"absolute", b"/etc/passwd"),
                t.symlink(b"up", b"../../.."),
                t.symlink(b"self", b"self"),
                t.symlink(b"bytes", b"\xff\xfe"),
                t.symlink(b"long", b"l" * 4000),
                t.symlink(b"to_dir", b"d", uid=70_000, gid=5),
            )
        ]
    ),
    "hard_links": Feature(
        [
            _tar(
                t.directory(b"d"),
                t.file(b"a", b"shared", uid=7),
                t.hardlink(b"b", b"a"),
                t.hardlink(b"d/c", b"./b"),
                t.symlink(b"s", b"a"),
                t.hardlink(b"s2", b"s"),
                t.member(b"p", t.FIFO),
                t.hardlink(b"p2", b"p"),
                t.member(b"n", t.CHAR, major=1, minor=3),
                t.hardlink(b"n2", b"n"),
            )
        ],
        expect={
            b"a": {"nlink": 3, "links": frozenset({b"a", b"b", b"d/c"})},
            b"s2": {"kind": "symlink", "target": b"a", "links": frozenset({b"s", b"s2"})},
        },
    ),
    "hard_link_across_layers": Feature(
        [_tar(t.file(b"a", b"lower")), _tar(t.hardlink(b"b", b"a")), _tar(t.directory(b"d"), t.hardlink(b"d/c", b"b"))],
        expect={b"d/c": {"nlink": 3, "links": frozenset({b"a", b"b", b"d/c"})}},
    ),
    "hard_link_name_replaced_above": Feature(
        [_tar(t.file(b"a", b"old"), t.hardlink(b"b", b"a")), _tar(t.file(b"a", b"newer"))],
        expect={b"a": {"size": 5, "nlink": 1}, b"b": {"size": 3, "nlink": 1}},
    ),
    "hard_link_name_removed_above": Feature(
        [_tar(t.file(b"a", b"old"), t.hardlink(b"b", b"a"), t.hardlink(b"c", b"a")), _tar(t.whiteout(b"a"))],
        expect={b"b": {"size": 3, "nlink": 2, "links": frozenset({b"b", b"c"})}},
    ),
    "hard_link_to_a_file_of_its_own_layer": Feature(
        [_tar(t.file(b"a", b"lower")), _tar(t.file(b"a", b"upper!"), t.hardlink(b"b", b"a"))],
        expect={b"b": {"size": 6, "nlink": 2}},
    ),
    "whiteouts": Feature(
        [
            _tar(
                t.file(b"a", b"1"),
                t.directory(b"d"),
                t.file(b"d/x", b"2"),
                t.directory(b"e"),
                t.file(b"e/y"),
                t.file(b"e/z"),
                t.symlink(b"s", b"e"),
            ),
            _tar(t.whiteout(b"a"), t.whiteout(b"d"), t.directory(b"e"), t.whiteout(b"e/y"), t.whiteout(b"s"), t.whiteout(b"never_was")),
        ],
        expect={b"e/z": {"kind": "file"}},
    ),
    "whiteout_then_again": Feature(
        [
            _tar(t.directory(b"d"), t.file(b"d/x", b"old"), t.file(b"d/y")),
            _tar(t.whiteout(b"d")),
            _tar(t.directory(b"d", 0o700), t.file(b"d/x", b"newer")),
        ]
    ),
    "whiteout_first_in_its_layer": Feature(
        [_tar(t.directory(b"d"), t.file(b"d/x", b"old")), _tar(t.whiteout(b"d"), t.directory(b"d", 0o700), t.file(b"d/y", b"new"))]
    ),
    "whiteout_last_in_its_layer": Feature(
        [_tar(t.directory(b"d"), t.file(b"d/x", b"old")), _tar(t.directory(b"d", 0o700), t.file(b"d/y", b"new"), t.whiteout(b"d"))],
        expect={b"d": {"mode": 0o700}, b"d/y": {"size": 3}},
        ignore={b"d": _TIME},
    ),
    "opaque_first": Feature(
        [_tar(t.directory(b"d"), t.file(b"d/x", b"old")), _tar(t.directory(b"d", 0o700), t.opaque(b"d"), t.file(b"d/y", b"new"))]
    ),
    "opaque_last": Feature(
        [_tar(t.directory(b"d"), t.file(b"d/x", b"old")), _tar(t.directory(b"d", 0o700), t.file(b"d/y", b"new"), t.opaque(b"d"))]
    ),
    "opaque_before_its_directory": Feature(
        [_tar(t.directory(b"d"), t.file(b"d/x", b"old")), _tar(t.opaque(b"d"), t.directory(b"d", 0o700), t.file(b"d/y", b"new"))]
    ),
    "opaque_deep": Feature(
        [
            _tar(t.directory(b"d"), t.directory(b"d/e"), t.file(b"d/e/x", b"old"), t.file(b"d/f", b"old")),
            _tar(t.directory(b"d"), t.directory(b"d/e"), t.file(b"d/e/y", b"new"), t.opaque(b"d")),
        ],
        expect={b"d/e/y": {"size": 3}},
        ignore={b"d/e": _TIME},
    ),
    "opaque_root": Feature([_tar(t.file(b"x", b"old")), _tar(t.opaque(b""), t.file(b"y", b"new"))], expect={b"y": {"size": 3}}),
    "opaque_of_nothing": Feature([_tar(t.file(b"x", b"1"), t.directory(b"d"), t.opaque(b"d"), t.file(b"d/y", b"2"))]),
    "directory_becomes_file": Feature(
        [_tar(t.directory(b"p"), t.file(b"p/x", b"1")), _tar(t.file(b"p", b"file now"))], expect={b"p": {"kind": "file"}}
    ),
    "file_becomes_directory": Feature(
        [_tar(t.file(b"p", b"file")), _tar(t.directory(b"p"), t.file(b"p/x", b"1"))], expect={b"p/x": {"size": 1}}
    ),
    "directory_becomes_symlink": Feature(
        [_tar(t.directory(b"p"), t.file(b"p/x", b"1"), t.directory(b"q")), _tar(t.symlink(b"p", b"q"))], expect={b"p": {"kind": "symlink"}}
    ),
    "symlink_becomes_directory": Feature(
        [
            _tar(t.directory(b"q"), t.file(b"q/x", b"1"), t.symlink(b"p", b"q")),
            _tar(t.whiteout(b"p"), t.directory(b"p"), t.file(b"p/y", b"2")),
        ]
    ),
    "directory_metadata_above": Feature(
        [
            _tar(t.directory(b"d", 0o755, uid=1), t.file(b"d/x", b"1")),
            _tar(t.directory(b"d", 0o1700, uid=2, records={b"mtime": b"1600000000.25"})),
        ],
        expect={b"d": {"mode": 0o1700, "uid": 2, "mtime_ns": 1_600_000_000_250_000_000}, b"d/x": {"size": 1}},
    ),
    "file_metadata_above": Feature(
        [_tar(t.file(b"f", b"same", mode=0o644, records=_x(user__old=b"1"))), _tar(t.file(b"f", b"same", mode=0o4700, uid=5))],
        expect={b"f": {"xattrs": (), "uid": 5}},
    ),
    "directory_after_its_children": Feature(
        [_tar(t.file(b"d/x", b"1"), t.directory(b"d", 0o750, uid=9))], expect={b"d": {"mode": 0o750, "uid": 9}}, ignore={b"": _TIME}
    ),
    "twice_in_one_layer": Feature(
        [_tar(t.file(b"a", b"first", mode=0o600), t.file(b"a", b"second!"))], expect={b"a": {"size": 7, "mode": 0o644}}
    ),
    "through_a_symlink": Feature(
        [_tar(t.directory(b"real"), t.symlink(b"way", b"real")), _tar(t.file(b"way/x", b"1"))],
        expect={b"way": {"kind": "symlink"}, b"real/x": {"size": 1}},
    ),
    "through_an_absolute_symlink": Feature(
        [_tar(t.directory(b"real"), t.symlink(b"way", b"/real")), _tar(t.file(b"way/x", b"1"))],
        expect={b"way": {"kind": "symlink"}, b"real/x": {"size": 1}},
    ),
    "through_a_symlink_that_climbs": Feature(
        [_tar(t.directory(b"real"), t.symlink(b"way", b"../../../real")), _tar(t.file(b"way/x", b"1"))],
        expect={b"way": {"kind": "symlink"}, b"real/x": {"size": 1}},
    ),
    "through_a_symlink_of_its_own_layer": Feature(
        [_tar(t.directory(b"real"), t.symlink(b"way", b"real"), t.file(b"way/x", b"1"))], expect={b"real/x": {"size": 1}}
    ),
    "missing_parents": Feature(
        [_tar(t.file(b"a/b/c", b"1"))],
        expect={b"a": {"mode": 0o755, "uid": 0, "gid": 0}},
        ignore={b"": _TIME, b"a": _TIME, b"a/b": _TIME},
    ),
    "xattrs": Feature(
        [
            _tar(
                t.file(b"capability", b"x", records=_x(security__capability=_CAPABILITY)),
                t.file(b"user", b"x", records=_x(user__a=b"1", user__b=b"\0\xff\n=", user__long__name__with__dots=b"v" * 3000)),
                t.file(b"acl", b"x", mode=0o754, records=_x(system__posix_acl_access=_ACCESS)),
                t.directory(b"dir", 0o754, records=_x(user__d=b"1", system__posix_acl_access=_ACCESS, system__posix_acl_default=_DEFAULT)),
                t.file(b"trusted", b"x", records=_x(trusted__t=b"1")),
                t.symlink(b"symlink", b"user", records=_x(trusted__s=b"1")),
                t.file(b"empty_file", records=_x(user__a=b"1")),
                t.file(b"inlined", b"i" * 64, records=_x(user__a=b"1")),
                t.file(b"large", text(300_000), records=_x(user__a=b"1", security__capability=_CAPABILITY)),
            )
        ],
        expect={b"capability": {"xattrs": ((b"security.capability", _CAPABILITY),)}},
    ),
    "xattr_without_a_value": Feature(
        [_tar(t.file(b"f", b"x", records=_x(user__empty=b"")))],
        expect={b"f": {"xattrs": ((b"user.empty", b""),)}},
        odd="it takes a record without a value for none",
    ),
    "overlay_xattrs": Feature(
        [
            _tar(
                t.directory(b"opaque", records=_x(trusted__overlay__opaque=b"y")),
                t.file(b"redirect", b"x" * 100, records=_x(trusted__overlay__redirect=b"/elsewhere", trusted__overlay__metacopy=b"")),
                t.file(b"escaped", b"x", records=_x(trusted__overlay__overlay__opaque=b"y")),
            )
        ],
        expect={
            b"opaque": {"xattrs": ((b"trusted.overlay.opaque", b"y"),)},
            b"redirect": {"xattrs": ((b"trusted.overlay.metacopy", b""), (b"trusted.overlay.redirect", b"/elsewhere"))},
            b"escaped": {"xattrs": ((b"trusted.overlay.overlay.opaque", b"y"),)},
        },
        odd="it leaves out the xattrs of overlayfs",
    ),
    "same_content_many_names": Feature(
        [_tar(*[t.file(b"%02d" % number, noise(100_000), uid=number) for number in range(20)])], expect={b"00": {"nlink": 1}}
    ),
}

_PLAIN: Final = _tar(t.file(b"a", noise(200_000)), t.file(b"b", text(50_000)))


def _split(data: bytes, pieces: int) -> list[bytes]:
    step = len(data) // pieces + 1
    return [data[start : start + step] for start in range(0, len(data), step)]


def _compressed() -> dict[str, Feature]:
    squeeze = zstandard.ZstdCompressor(level=1)
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"skip!"
    stored = {
        "layer_plain": Layer(_PLAIN, ""),
        "layer_gzip": Layer(_PLAIN, "+gzip"),
        "layer_gzip_members": Layer(_PLAIN, stored=b"".join(gzip.compress(part, mtime=0) for part in _split(_PLAIN, 7))),
        "layer_gzip_with_name": Layer(_PLAIN, stored=b"\x1f\x8b\x08\x08" + bytes(6) + b"name.tar\0" + gzip.compress(_PLAIN, mtime=0)[10:]),
        "layer_zstd": Layer(_PLAIN, "+zstd"),
        "layer_zstd_frames": Layer(
            _PLAIN, "+zstd", stored=skippable + b"".join(squeeze.compress(part) for part in _split(_PLAIN, 5)) + skippable
        ),
        "layer_zstd_long_window": Layer(
            _PLAIN,
            "+zstd",
            stored=zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27)).compress(_PLAIN),
        ),
    }
    return {name: Feature([layer], reference=[_PLAIN]) for name, layer in stored.items()}


def _mixed() -> Feature:
    layers = [_tar(t.file(b"a", b"1")), _tar(t.file(b"b", noise(5000))), _tar(t.whiteout(b"a"), t.file(b"c", b"3"))]
    return Feature([Layer(tar, suffix) for tar, suffix in zip(layers, ("+zstd", "", "+gzip"), strict=True)], reference=layers)


FEATURES: Final[Mapping[str, Feature]] = _DATA | _compressed() | {"layers_each_compressed_otherwise": _mixed()}
"""All of them by name."""
