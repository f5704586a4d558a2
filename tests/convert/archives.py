"""Archives that a tar library refuses to write: members with sizes, types and links of the test's choosing; and layers of entries."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from imagefs.convert.entry import Entry, Kind
from imagefs.convert.stream import LayerBlob
from tests.convert import model
from tests.corpus import rawtar


def member(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", size: int | None = None) -> bytes:
    """Return one member; its header says ``size`` whatever the data is."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def archive(path: Path, *members: bytes) -> Path:
    """Write members as a tar archive."""
    path.write_bytes(b"".join(members) + bytes(1024))
    return path


def one_file_tar(name: str, data: bytes = b"x") -> bytes:
    """Return a layer with one file."""
    return member(name, data) + bytes(1024)


def sha256(data: bytes) -> str:
    """Return a digest as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def blob(stored: bytes, content: bytes, compression: str, opened: Callable[[], io.BytesIO] | None = None, **lies: object) -> LayerBlob:
    """Return a layer in memory; ``lies`` replace what is said of it."""
    said: dict[str, object] = {"digest": sha256(stored), "diff_id": sha256(content), "size": len(stored)} | lies
    return LayerBlob("test", said["digest"], said["diff_id"], said["size"], compression, opened or (lambda: io.BytesIO(stored)))  # type: ignore[arg-type]


def as_tar(layer: Sequence[Entry], contents: Callable[[Entry], bytes] = model.content_of) -> bytes:
    """Return a layer as an archive; ``contents`` says what is in a file."""
    types = {Kind.FILE: b"0", Kind.DIR: b"5", Kind.SYMLINK: b"2", Kind.HARDLINK: b"1", Kind.FIFO: b"6", Kind.CHAR: b"3"}
    members = []
    for entry in layer:
        if entry.kind is Kind.WHITEOUT:
            members.append(rawtar.whiteout(entry.path))
        elif entry.kind is Kind.OPAQUE:
            members.append(rawtar.opaque(entry.path))
        else:
            data = contents(entry) if entry.kind is Kind.FILE else b""
            members.append(
                rawtar.member(
                    entry.path,
                    types[entry.kind],
                    data,
                    mode=entry.mode,
                    uid=entry.uid,
                    mtime=entry.mtime_ns // 10**9,
                    link=entry.link,
                    major=1,
                    minor=5,
                )
            )
    return rawtar.archive(*members)
