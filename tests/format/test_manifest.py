"""The manifest: one spelling, strict, and bounded before it is parsed."""

from collections.abc import Callable

import pytest

from imagefs.errors import ImageFSError, IntegrityError, LimitError, UnsupportedError
from imagefs.format.manifest import MAX_MANIFEST, BlobName, Layer, Manifest, Platform, check_depth, decode, encode

MANIFEST = Manifest(
    tree=BlobName("0" * 64, 1),
    objects=BlobName("1" * 64, 2),
    platform=Platform("linux", "arm64", "v9"),
    config={"b": [1, 2.5, None, True], "a": {"é": '\n"]}'}},
    annotations={"z": "1", "a": "2"},
    layers=[Layer("application/x", "sha256:" + "a" * 64, "sha256:" + "b" * 64)],
    files=3,
    bytes=4,
    frame_size=5,
)


def test_it_is_read_back() -> None:
    assert decode(encode(MANIFEST)) == MANIFEST


def test_its_spelling_is_fixed() -> None:
    assert encode(MANIFEST) == (
        b'{"annotations":{"a":"2","z":"1"},"bytes":4,"config":{"a":{"\xc3\xa9":"\\n\\"]}"},"b":[1,2.5,null,true]},"files":3,"format":1,'
        b'"frame_size":5,"kind":"image","layers":[{"diff_id":"sha256:' + b"b" * 64 + b'","digest":"sha256:' + b"a" * 64 + b'",'
        b'"media_type":"application/x"}],"objects":{"digest":"'
        + b"1"
        * 64
        + b'","size":2},"platform":{"architecture":"arm64","os":"linux",'
        b'"variant":"v9"},"tree":{"digest":"' + b"0" * 64 + b'","size":1}}\n'
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.replace(b'"format":1', b'"format":2'), UnsupportedError),
        (lambda d: d.replace(b'"kind":"image"', b'"kind":"other"'), UnsupportedError),
        (lambda d: d.replace(b'"files":3', b'"files":3,"new":1'), IntegrityError),
        (lambda d: d.replace(b'"files":3', b'"files":-3'), IntegrityError),
        (lambda d: d.replace(b'"files":3', b'"files": 3'), IntegrityError),
        (lambda d: d.replace(b"0" * 64, b"0" * 63 + b"G"), IntegrityError),
        (lambda d: d.replace(b"0" * 64, b"../" + b"0" * 61), IntegrityError),
        (lambda d: d[:-1], IntegrityError),
        (lambda d: d[:-2], IntegrityError),
        (lambda d: d + b"\n", IntegrityError),
        (lambda _: b"", IntegrityError),
        (lambda _: b"\xff\xfe", IntegrityError),
        (lambda _: b"[" * 10_000, LimitError),
        (lambda _: b'{"a":' * 10_000, LimitError),
        (lambda _: b" " * (MAX_MANIFEST + 1), LimitError),
    ],
)
def test_anything_else_is_refused(change: Callable[[bytes], bytes], expected: type[ImageFSError]) -> None:
    with pytest.raises(expected):
        decode(change(encode(MANIFEST)))


def test_brackets_in_strings_are_not_levels() -> None:
    check_depth(b'["' + b"[" * 1000 + b'\\"' + b"{" * 1000 + b'"]', 1, "x")
    with pytest.raises(LimitError):
        check_depth(b'["]"]' + b"[[" + b'"', 1, "x")


def test_a_config_that_json_cannot_hold_is_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"a": deep}
    for config in (deep, {"a": object()}):
        with pytest.raises(ImageFSError):
            encode(
                Manifest(**{field: getattr(MANIFEST, field) for field in MANIFEST.__struct_fields__ if field != "config"}, config=config)
            )
