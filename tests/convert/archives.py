"""Archives that a tar library refuses to write: members with sizes, types and links of the test's choosing."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from imagefs.convert.stream import LayerBlob


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
