"""Sources that must be refused: each is made by code in an empty directory, and says how it may be refused.

``exits`` are the exit codes (``imagefs/errors.py``) that tell the user the truth about the case: 3 malformed, 4 not for this version,
6 not found, 14 beyond a stated bound, 2 to be said more precisely on the command line.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.corpus import rawtar as t
from tests.corpus.features import ROOT, noise
from tests.corpus.oci import (
    LAYER,
    MANIFEST,
    Image,
    Layer,
    Layout,
    as_json,
    docker_archive,
    gzip_bomb,
    layout,
    platform_index,
    sha256,
    simple,
    zstd_bomb,
)


@dataclass(frozen=True)
class Hostile:
    """``make`` writes the source into a directory and returns the SOURCE argument."""

    make: Callable[[Path], str]
    exits: frozenset[int]


def _tar(*members: bytes) -> bytes:
    return t.archive(ROOT, *members)


GOOD: Final = _tar(t.file(b"a", b"1"), t.file(b"b", noise(20_000)))


def _layers(*layers: Layer | bytes, exits: tuple[int, ...] = (3,), **fields: Any) -> Hostile:
    return Hostile(lambda path: f"oci:{simple(path / 'layout', *layers, **fields)}", frozenset(exits))


def _members(*members: bytes, exits: tuple[int, ...] = (3,)) -> Hostile:
    return _layers(_tar(*members), exits=exits)


def _changed(change: Callable[[Path], None], *exits: int) -> Hostile:
    """Write a good layout, then let ``change`` spoil it."""

    def make(path: Path) -> str:
        made = simple(path / "layout", GOOD)
        change(made)
        return f"oci:{made}"

    return Hostile(make, frozenset(exits or (3,)))


def _blob_of(made: Path, kind: str) -> Path:
    """Return the file of the manifest, the config, or the layer of a layout with one image of one layer."""
    index = json.loads((made / "index.json").read_bytes())
    digest = index["manifests"][0]["digest"]
    if kind != "manifest":
        manifest = json.loads((made / "blobs" / digest.replace(":", "/")).read_bytes())
        digest = manifest["config"]["digest"] if kind == "config" else manifest["layers"][0]["digest"]
    return made / "blobs" / str(digest).replace(":", "/")


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file; a negative ``place`` counts from the end."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def _index(change: Callable[[dict[str, Any]], object], *exits: int) -> Hostile:
    """Write a good layout whose index.json ``change`` edits in place."""

    def edit(made: Path) -> None:
        index = json.loads((made / "index.json").read_bytes())
        change(index)
        (made / "index.json").write_bytes(as_json(index))

    return _changed(edit, *exits)


def _raw_index(data: bytes, *exits: int) -> Hostile:
    return _changed(lambda made: _ignore((made / "index.json").write_bytes(data)), *exits)


def _ignore(_: object) -> None:
    return None


def _plain(name: str, data: bytes, *exits: int, scheme: str = "") -> Hostile:
    def make(path: Path) -> str:
        (path / name).write_bytes(data)
        return f"{scheme}{path / name}"

    return Hostile(make, frozenset(exits or (3,)))


def _deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def _manifest_bytes(data: bytes, *exits: int) -> Hostile:
    """Write a layout whose manifest is ``data``, with its true digest."""

    def make(path: Path) -> str:
        made = Layout(path / "layout")
        made.index([made.blob(data) | {"mediaType": MANIFEST}])
        return f"oci:{made.path}"

    return Hostile(make, frozenset(exits or (3,)))


def _config_bytes(data: bytes, *exits: int) -> Hostile:
    def make(path: Path) -> str:
        made = Layout(path / "layout")
        layer = made.blob(Layer(GOOD).blob) | {"mediaType": LAYER + "+gzip"}
        config = made.blob(data) | {"mediaType": "application/vnd.oci.image.config.v1+json"}
        manifest = made.blob(as_json({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}))
        made.index([manifest | {"mediaType": MANIFEST}])
        return f"oci:{made.path}"

    return Hostile(make, frozenset(exits or (3,)))


def _huge(name: str) -> Hostile:
    """10 GB that take no room: nothing may try to hold them."""

    def change(made: Path) -> None:
        path = made / name if name == "index.json" else _blob_of(made, name)
        os.truncate(path, 10_000_000_000)

    return _changed(change, 3, 14)


def _truncated_tar(cut: int) -> bytes:
    return GOOD[: len(GOOD) - cut]


def _sparse(member: bytes, data: bytes, **records: bytes) -> bytes:
    return t.file(member, data, records={b"GNU.sparse." + key.replace("__", ".").encode(): value for key, value in records.items()})


def _old_sparse(*segments: tuple[int, int], real: int, stored: int) -> bytes:
    """Return a GNU sparse member (type S) with up to four segments in its header."""
    block = bytearray(t.header(b"s", b"S", size=stored, magic=b"ustar  \0"))
    place = 386
    for offset, length in segments:
        block[place : place + 24] = t.octal(offset, 12) + t.octal(length, 12)
        place += 24
    block[483:495] = t.octal(real, 12)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + t.pad(bytes(stored))


_PARTS: Final = ("manifest", "config", "layer")


def _spoiled(part: str, spoil: Callable[[Path], object], *exits: int) -> Hostile:
    """Write a good layout, then let ``spoil`` at the blob of one of its parts."""
    return _changed(lambda made: _ignore(spoil(_blob_of(made, part))), *exits)


def _flipped(part: str, place: int) -> Hostile:
    return _spoiled(part, lambda path: flip(path, place))


_BLOBS: Final[dict[str, Hostile]] = {
    **{f"flipped_{part}_{place}": _flipped(part, place) for part in _PARTS for place in (0, 150, -1)},
    **{f"missing_{part}": _spoiled(part, Path.unlink, 3, 6) for part in _PARTS},
    **{f"empty_{part}": _spoiled(part, lambda path: os.truncate(path, 0)) for part in _PARTS},
    "digest_lies": _layers(Layer(GOOD, digest=sha256(b"something else"))),
    "diff_id_lies": _layers(Layer(GOOD, diff_id=sha256(b"something else"))),
    "diff_id_lies_plain": _layers(Layer(GOOD, "", diff_id=sha256(b"something else"))),
    "diff_id_lies_zstd": _layers(Layer(GOOD, "+zstd", diff_id=sha256(b"something else"))),
    "diff_id_lies_below": _layers(Layer(_tar(t.file(b"z")), diff_id=sha256(b"something else")), GOOD),
    "diff_id_missing": _layers(GOOD, config={"rootfs": {"type": "layers", "diff_ids": []}}),
    "diff_id_too_many": _layers(GOOD, config={"rootfs": {"type": "layers", "diff_ids": [sha256(GOOD)] * 2}}),
    "size_too_small": _layers(Layer(GOOD, size=100)),
    "size_too_large": _layers(Layer(GOOD, size=10**9)),
    "size_negative": _layers(Layer(GOOD, size=-1)),
}

_STREAMS: Final[dict[str, Hostile]] = {
    "gzip_ends_early": _layers(Layer(GOOD, stored=Layer(GOOD).blob[:-2000])),
    "gzip_without_trailer": _layers(Layer(GOOD, stored=Layer(GOOD).blob[:-8])),
    "gzip_of_nothing": _layers(Layer(GOOD, stored=b"")),
    "gzip_then_garbage": _layers(Layer(GOOD, stored=Layer(GOOD).blob + b"garbage")),
    "gzip_crc": _layers(Layer(GOOD, stored=Layer(GOOD).blob[:-8] + bytes(4) + Layer(GOOD).blob[-4:])),
    "gzip_is_not": _layers(Layer(GOOD, stored=noise(3000)), exits=(3, 4)),
    "gzip_is_xz": _layers(Layer(GOOD, stored=b"\xfd7zXZ\x00" + noise(3000)), exits=(3, 4)),
    "zstd_ends_early": _layers(Layer(GOOD, "+zstd", stored=Layer(GOOD, "+zstd").blob[:-2000])),
    "zstd_then_garbage": _layers(Layer(GOOD, "+zstd", stored=Layer(GOOD, "+zstd").blob + b"garbage")),
    "zstd_of_nothing": _layers(Layer(GOOD, "+zstd", stored=b"")),
    "tar_ends_in_data": _layers(_truncated_tar(5000)),
    "tar_ends_in_a_header": _layers(_tar(t.file(b"a", b"1"))[:-1024] + t.header(b"b")[:200]),
    "tar_is_noise": _layers(noise(10_000)),
    "tar_checksum": _layers(t.archive(ROOT, t.header(b"a", checksum=b"000001\0 "))),
    "gzip_bomb": Hostile(lambda path: f"oci:{simple(path / 'layout', _bomb('+gzip'))}", frozenset({14})),
    "zstd_bomb": Hostile(lambda path: f"oci:{simple(path / 'layout', _bomb('+zstd'))}", frozenset({14})),
}

BOMB_BYTES: Final = 300 << 20
"""What each of the bombs is when it goes off. The tests bring the stated bound below that."""


def _bomb(suffix: str) -> Layer:
    stored = gzip_bomb(BOMB_BYTES) if suffix == "+gzip" else zstd_bomb(BOMB_BYTES)
    return Layer(b"", suffix, stored=stored)


_PATHS: Final[dict[str, Hostile]] = {
    "dotdot": _members(t.file(b"../x", b"1")),
    "dotdot_inside": _members(t.directory(b"a"), t.file(b"a/../../x", b"1")),
    "dotdot_directory": _members(t.directory(b"..")),
    "dotdot_hard_link": _members(t.hardlink(b"x", b"../../../etc/passwd")),
    "dotdot_whiteout": _members(t.file(b"a/.wh...")),
    "dot_whiteout": _members(t.file(b"a/.wh..")),
    "whiteout_of_nothing": _members(t.file(b"a/.wh.")),
    "empty_name": _members(t.file(b"", b"1")),
    "root_is_a_file": _members(t.file(b".", b"1")),
    "nul_in_a_name": _members(t.file(b"x", records={b"path": b"a\0b"})),
    "name_of_256_bytes": _members(t.file(b"n" * 256), exits=(3, 14)),
    "path_of_4097_bytes": _members(t.file(b"/".join([b"d" * 200] * 20) + b"/" + b"f" * 77), exits=(3, 14)),
    "path_of_100000_parts": _members(t.file(b"a/" * 100_000 + b"x"), exits=(3, 14)),
    "path_of_100000_parts_gnu": _members(t.gnu_long(b"a/" * 100_000 + b"x") + t.header(b"x"), exits=(3, 14)),
    "symlink_of_5000_bytes": _members(t.symlink(b"s", b"t" * 5000), exits=(3, 14)),
    "symlink_to_nothing": _members(t.symlink(b"s", b"")),
    "file_on_the_way": _members(t.file(b"a", b"1"), t.file(b"a/b", b"2")),
    "symlink_loop_on_the_way": _members(t.symlink(b"a", b"b"), t.symlink(b"b", b"a"), t.file(b"a/x", b"1")),
    "hard_link_dangling": _members(t.hardlink(b"a", b"nowhere")),
    "hard_link_circular": _members(t.hardlink(b"a", b"b"), t.hardlink(b"b", b"a")),
    "hard_link_to_itself": _members(t.hardlink(b"a", b"a")),
    "hard_link_to_a_directory": _members(t.directory(b"d"), t.hardlink(b"a", b"d")),
    "hard_link_before_its_target": _members(t.hardlink(b"a", b"z"), t.file(b"z", b"1")),
    "hard_link_to_the_removed": _layers(_tar(t.file(b"a", b"1")), _tar(t.whiteout(b"a")), _tar(t.hardlink(b"b", b"a"))),
}

_HEADERS: Final[dict[str, Hostile]] = {
    "size_of_8_exabytes": _members(t.header(b"a", size=2**63 - 1), exits=(3, 14)),
    "size_of_8_exabytes_pax": _members(t.pax({b"size": b"%d" % (2**63 - 1)}) + t.header(b"a"), exits=(3, 14)),
    "size_beyond_64_bits": _members(t.header(b"a", size=b"\x80" + b"\xff" * 11), exits=(3, 14)),
    "size_below_zero": _members(t.header(b"a", size=-512)),
    "size_is_not_a_number": _members(t.header(b"a", size=b"12345x78901")),
    "pax_size_is_not_a_number": _members(t.pax({b"size": b"many"}) + t.header(b"a")),
    "pax_mtime_is_not_a_number": _members(t.file(b"a", records={b"mtime": b"now"})),
    "pax_mtime_beyond_64_bits": _members(t.file(b"a", records={b"mtime": b"99999999999999999999"}), exits=(3, 14)),
    "pax_uid_beyond_32_bits": _members(t.file(b"a", records={b"uid": b"4294967296"}), exits=(3, 4, 14)),
    "uid_beyond_32_bits": _members(t.file(b"a", uid=2**32), exits=(3, 4, 14)),
    "uid_below_zero": _members(t.file(b"a", uid=-1), exits=(3, 4, 14)),
    "pax_length_lies": _members(t.header(b"pax", b"x", size=20) + t.pad(b"99 path=aaaaaaaaaaaa\n") + t.header(b"a")),
    "pax_length_zero": _members(t.header(b"pax", b"x", size=9) + t.pad(b"0 path=a\n") + t.header(b"a")),
    "pax_length_is_not_a_number": _members(t.header(b"pax", b"x", size=9) + t.pad(b"x path=a\n") + t.header(b"a")),
    "pax_without_equals": _members(t.header(b"pax", b"x", size=8) + t.pad(b"8 patha\n") + t.header(b"a")),
    "pax_of_8_exabytes": _members(t.header(b"pax", b"x", size=2**62), exits=(3, 14)),
    "pax_of_a_gigabyte": _members(t.header(b"pax", b"x", size=1 << 30), exits=(3, 14)),
    "pax_describes_nothing": _members(t.pax({b"path": b"a"})),
    "gnu_long_name_of_a_gigabyte": _members(t.header(b"././@LongLink", b"L", size=1 << 30, magic=b"ustar  \0"), exits=(3, 14)),
    "unknown_type": _members(t.member(b"a", b"Z"), exits=(3, 4)),
    "multi_volume": _members(t.member(b"a", b"M"), exits=(3, 4)),
    "xattr_name_of_300_bytes": _members(t.file(b"a", records={b"SCHILY.xattr.user." + b"x" * 300: b"1"}), exits=(3, 14)),
    "xattr_value_of_100_kilobytes": _members(t.file(b"a", records={b"SCHILY.xattr.user.x": bytes(100_000)}), exits=(3, 14)),
    "xattrs_of_360_kilobytes": _members(
        t.file(b"a", records={b"SCHILY.xattr.user.%d" % number: bytes(60_000) for number in range(6)}), exits=(3, 14)
    ),
    "sparse_beyond_its_size": _members(_sparse(b"s", bytes(512), major=b"0", minor=b"1", size=b"100", map=b"0,512", numblocks=b"1")),
    "sparse_overlaps": _members(_sparse(b"s", bytes(1024), major=b"0", minor=b"1", size=b"4096", map=b"0,512,256,512", numblocks=b"2")),
    "sparse_backwards": _members(_sparse(b"s", bytes(1024), major=b"0", minor=b"1", size=b"4096", map=b"2048,512,0,512", numblocks=b"2")),
    "sparse_of_odd_length": _members(_sparse(b"s", bytes(512), major=b"0", minor=b"1", size=b"4096", map=b"0,512,512", numblocks=b"1")),
    "sparse_more_than_stored": _members(_sparse(b"s", bytes(512), major=b"0", minor=b"1", size=b"4096", map=b"0,1024", numblocks=b"1")),
    "sparse_less_than_stored": _members(_sparse(b"s", bytes(512), major=b"0", minor=b"1", size=b"4096", map=b"0,100", numblocks=b"1")),
    "sparse_below_zero": _members(_sparse(b"s", bytes(512), major=b"0", minor=b"1", size=b"4096", map=b"-512,512", numblocks=b"1")),
    "sparse_1_0_without_a_map": _members(_sparse(b"s", noise(512), major=b"1", minor=b"0", realsize=b"4096", name=b"s")),
    "sparse_1_0_map_of_billions": _members(
        _sparse(b"s", t.pad(b"99999999999\n0\n1\n"), major=b"1", minor=b"0", realsize=b"4096", name=b"s"), exits=(3, 14)
    ),
    "sparse_of_a_future_version": _members(_sparse(b"s", bytes(512), major=b"2", minor=b"0", realsize=b"4096", name=b"s"), exits=(3, 4)),
    "sparse_old_beyond_its_size": _members(_old_sparse((0, 512), (8192, 512), real=4096, stored=1024)),
    "sparse_old_overlaps": _members(_old_sparse((0, 512), (100, 512), real=4096, stored=1024)),
}

_DOCUMENTS: Final[dict[str, Hostile]] = {
    "index_is_not_json": _raw_index(b"not json"),
    "index_is_empty": _raw_index(b""),
    "index_is_a_list": _raw_index(b"[]"),
    "index_without_manifests": _raw_index(b'{"schemaVersion":2}', 3, 6),
    "index_of_nothing": _raw_index(b'{"schemaVersion":2,"manifests":[]}', 3, 6),
    "index_of_10000_levels": _raw_index(_deep(10_000), 3, 14),
    "index_of_a_million_levels": _raw_index(_deep(1_000_000), 3, 14),
    "index_with_10000_levels_inside": _raw_index(b'{"schemaVersion":2,"x":' + _deep(10_000) + b',"manifests":[]}', 3, 6, 14),
    "index_of_10_gigabytes": _huge("index.json"),
    "manifest_of_10_gigabytes": _huge("manifest"),
    "config_of_10_gigabytes": _huge("config"),
    "manifest_is_not_json": _manifest_bytes(b"{"),
    "manifest_is_not_utf8": _manifest_bytes(b'{"a":"\xff\xff"}'),
    "manifest_of_10000_levels": _manifest_bytes(_deep(10_000), 3, 14),
    "manifest_without_layers": _manifest_bytes(b'{"schemaVersion":2}'),
    "manifest_of_schema_1": _manifest_bytes(b'{"schemaVersion":1,"fsLayers":[]}', 3, 4),
    "manifest_layers_are_a_number": _layers(GOOD, manifest={"layers": 5}),
    "manifest_layer_is_null": _layers(GOOD, manifest={"layers": [None]}),
    "config_is_not_json": _config_bytes(b"not json"),
    "config_of_10000_levels": _config_bytes(_deep(10_000), 3, 14),
    "config_is_a_list": _config_bytes(b"[]"),
    "digest_climbs": _index(lambda index: index["manifests"][0].update(digest="sha256:../../../../etc/passwd")),
    "digest_is_short": _index(lambda index: index["manifests"][0].update(digest="sha256:abcd")),
    "digest_is_md5": _index(lambda index: index["manifests"][0].update(digest="md5:d41d8cd98f00b204e9800998ecf8427e"), 3, 4),
    "digest_is_a_number": _index(lambda index: index["manifests"][0].update(digest=5)),
    "manifest_of_an_unknown_type": _index(lambda index: index["manifests"][0].update(mediaType="application/x-nobody"), 4),
    "layer_of_an_unknown_type": _layers(Layer(GOOD, media_type="application/x-nobody"), exits=(4,)),
    "layer_encrypted": _layers(Layer(GOOD, media_type=LAYER + "+gzip+encrypted"), exits=(4,)),
    "layer_of_unknown_compression": _layers(Layer(GOOD, media_type=LAYER + "+br"), exits=(4,)),
    "no_fitting_platform": Hostile(
        lambda path: f"oci:{platform_index(path / 'layout', [Image([GOOD], platform={'os': 'plan9', 'architecture': 'mips'})])}",
        frozenset({6}),
    ),
    "several_tags": Hostile(
        lambda path: f"oci:{layout(path / 'layout', Image([GOOD], tag='one'), Image([GOOD, GOOD], tag='two'))}", frozenset({2, 3, 6})
    ),
    "no_such_tag": Hostile(lambda path: f"oci:{simple(path / 'layout', GOOD)}:nope", frozenset({6})),
    "layout_of_a_future_version": _changed(lambda made: _ignore((made / "oci-layout").write_bytes(b'{"imageLayoutVersion":"9.0.0"}')), 4),
}


def _climbing_docker(path: Path) -> str:
    listed = [{"Config": "../../../etc/passwd", "RepoTags": ["a:b"], "Layers": ["../../../../etc/passwd"]}]
    return f"docker-archive:{docker_archive(path / 'image.tar', [GOOD], manifest=listed)}"


def _several_docker(path: Path) -> str:
    """An archive of two images, none of which is named."""
    empty = as_json({"rootfs": {"type": "layers", "diff_ids": []}})
    listed = [{"Config": f"{sha256(empty)[7:]}.json", "RepoTags": [f"{name}:latest"], "Layers": []} for name in ("one", "two")]
    return f"docker-archive:{docker_archive(path / 'image.tar', [GOOD], manifest=listed)}"


def _linked_archive(path: Path) -> str:
    """An archive whose manifest blob is a symbolic link out of it."""
    import io  # noqa: PLC0415 # beside its only use
    import tarfile  # noqa: PLC0415 # likewise

    made = simple(path / "layout", GOOD)
    blob = _blob_of(made, "manifest")
    (path / "outside").write_bytes(blob.read_bytes())
    with tarfile.open(path / "image.tar", "w") as tar:
        for file in sorted(item for item in made.rglob("*") if item.is_file()):
            info = tarfile.TarInfo(str(file.relative_to(made)))
            if file == blob:
                info.type, info.linkname = tarfile.SYMTYPE, str(path / "outside")
                tar.addfile(info)
            else:
                info.size = file.stat().st_size
                tar.addfile(info, io.BytesIO(file.read_bytes()))
    return f"oci-archive:{path / 'image.tar'}"


_SOURCES: Final[dict[str, Hostile]] = {
    "nothing_there": Hostile(lambda path: str(path / "nowhere"), frozenset({3, 6})),
    "nothing_there_oci": Hostile(lambda path: f"oci:{path / 'nowhere'}", frozenset({3, 6})),
    "nothing_there_archive": Hostile(lambda path: f"oci-archive:{path / 'nowhere'}", frozenset({3, 6})),
    "not_a_layout": Hostile(lambda path: f"oci:{path}", frozenset({3, 6})),
    "not_an_archive": _plain("x.tar", noise(50_000)),
    "not_an_archive_named": _plain("x.tar", noise(50_000), scheme="oci-archive:"),
    "empty_archive": _plain("x.tar", b"", scheme="oci-archive:"),
    "archive_of_something_else": _plain("x.tar", _tar(t.file(b"a", b"1")), 3, 6, scheme="oci-archive:"),
    "docker_archive_of_something_else": _plain("x.tar", _tar(t.file(b"a", b"1")), 3, 6, scheme="docker-archive:"),
    "docker_archive_climbs": Hostile(_climbing_docker, frozenset({3, 6})),
    "docker_archive_layer_lies": Hostile(
        lambda path: (
            f"docker-archive:{docker_archive(path / 'i.tar', [GOOD], manifest=[{'Config': 'x', 'RepoTags': None, 'Layers': ['y']}])}"
        ),
        frozenset({3, 6}),
    ),
    "docker_archive_of_several": Hostile(_several_docker, frozenset({3})),
    "docker_archive_without_that_name": Hostile(lambda path: f"{_several_docker(path)}:three", frozenset({6})),
    "archive_with_a_link_out": Hostile(_linked_archive, frozenset({3, 6})),
    "dir_is_a_file": _plain("x", b"1", 3, 6, scheme="dir:"),
    "dir_is_missing": Hostile(lambda path: f"dir:{path / 'nowhere'}", frozenset({3, 6})),
}

HOSTILE: Final[Mapping[str, Hostile]] = _BLOBS | _STREAMS | _PATHS | _HEADERS | _DOCUMENTS | _SOURCES
"""All of them by name."""
