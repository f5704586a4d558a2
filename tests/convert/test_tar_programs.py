"""Archives that other programs write: Python's tarfile, and GNU tar in each of its formats."""

import io
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.convert.entry import Entry, Kind
from tests.convert.tarreads import S, read

NAME = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=120), min_size=1, max_size=3).map(
    "/".join
)


def same_name(name: str) -> bytes | None:
    parts = [part for part in name.encode().split(b"/") if part != b"."]
    return None if b".." in parts or any(len(part) > 255 or part.startswith(b".wh.") for part in parts) else b"/".join(parts)


@given(
    st.lists(
        st.tuples(
            NAME,
            st.sampled_from([b"0", b"5", b"2"]),
            st.integers(0, 0o7777),
            st.integers(0, 2**32 - 2),
            st.integers(-(2**33), 2**34),
            st.binary(max_size=1500),
        ),
        max_size=6,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(1, 3000),
)
@settings(max_examples=60)
def test_what_pythons_tarfile_writes(files: list[tuple[str, bytes, int, int, int, bytes]], form: int, chunk: int) -> None:
    buffer = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, mode, owner, mtime, data in files:
            path = same_name(name)
            if not path:
                continue
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.mtime = kind, mode, owner, mtime
            info.linkname = "t" * (owner % 300 + 1) if kind == b"2" else ""
            content = data if kind == b"0" else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            expected.append((path, mode, owner, mtime * S, info.linkname.encode(), content))
    found = [(e.path, e.mode, e.uid, e.mtime_ns, e.link, content) for e, content in read(buffer.getvalue(), chunk)]
    assert found == expected


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu", "--sparse"],
        ["--format=oldgnu", "--sparse"],
        ["--format=pax", "--sparse", "--sparse-version=0.0"],
        ["--format=pax", "--sparse", "--sparse-version=0.1"],
        ["--format=pax", "--sparse", "--sparse-version=1.0"],
        ["--format=v7"],
        ["--format=ustar"],
    ],
)
def test_what_gnu_tar_writes(tmp_path: Path, options: list[str]) -> None:
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    generator = random.Random(5)
    with (tree / "holes").open("wb") as file:
        for _ in range(40):
            file.seek(generator.randrange(1, 20) * 65536, 1)
            file.write(generator.randbytes(generator.randrange(1, 70_000)))
        file.truncate(file.tell() + 1_000_000)
    (tree / "dir" / ("n" * 80)).write_bytes(b"plain")
    (tree / "link").symlink_to("dir/x")
    (tree / "hard").hardlink_to(tree / "holes")
    if "pax" in options[0] or "gnu" in options[0]:
        (tree / "dir" / ("l" * 200)).write_bytes(b"long")
    done = subprocess.run(["tar", *options, "-C", str(tree), "-cf", "-", "."], capture_output=True, check=True, timeout=60)
    found = {entry.path: (entry, content) for entry, content in read(done.stdout, 10_000)}
    paths = {path.relative_to(tree).as_posix().encode() for path in tree.rglob("*")} | {b""}
    assert set(found) == paths
    files = [(path, pair) for path, pair in found.items() if pair[0].kind is Kind.FILE]
    for path, (entry, content) in files:
        real = (tree / path.decode()).read_bytes()
        assert spread(entry, content) == real
        if "pax" in options[0]:
            assert entry.mtime_ns == (tree / path.decode()).stat().st_mtime_ns
    sparse = [entry for _, (entry, _) in files if entry.sparse is not None]
    assert len(sparse) == ("--sparse" in options)
    assert sum(entry.kind is Kind.HARDLINK for entry, _ in found.values()) == 1


def spread(entry: Entry, content: bytes) -> bytes:
    """Return a file's bytes with its holes as zeros."""
    if entry.sparse is None:
        return content
    whole = bytearray(entry.size)
    at = 0
    for offset, length in entry.sparse:
        whole[offset : offset + length] = content[at : at + length]
        at += length
    assert at == len(content)
    return bytes(whole)
