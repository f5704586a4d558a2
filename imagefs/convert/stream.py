"""A layer's bytes: read, decompressed and verified on a thread of its own, so that whoever parses them does not wait for the arithmetic.

Invariants: at most ``_QUEUE`` chunks wait; nothing is passed on beyond the limits; :meth:`LayerStream.finish` returns only if the blob was
whole and its size, its digest and its diff-id are what the image says. Leaving the context stops and joins the thread, whatever state it is
in.

Who owns what: the thread owns the blob and the decompressor, and a second one of its own computes both digests: SHA-256 is 40 % of the
work, and with it on the first thread a layer comes at 455 MB/s in place of
730, where a second core is idle; where none is, it makes no difference. The consumer owns the queue's other end. ``bytes_in`` and
``bytes_out`` are written by the thread and may be read by anyone.
"""

import gzip
import hashlib
import io
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol, Self, cast

import zstandard
from isal import igzip, isal_zlib

from imagefs.errors import ImageFSError, LimitError, SourceError

_CHUNK: Final = 1024 * 1024
_QUEUE: Final = 8
_MAGIC_SIZE: Final = 4
_WINDOW_MAX: Final = 128 * 1024 * 1024
_RATIO_FROM: Final = 1024 * 1024 * 1024

_GZIP_DAMAGE: Final = (gzip.BadGzipFile, zlib.error, cast("type[Exception]", isal_zlib.error))

GZIP: Final = "gzip"
ZSTD: Final = "zstd"
PLAIN: Final = "tar"


class Blob(Protocol):
    """An open blob of a source."""

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, ``b""`` at the end."""

    def close(self) -> None:
        """Close it."""


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A layer as the image names it.

    ``digest`` and ``diff_id`` are ``algorithm:hex``, ``digest`` is ``""`` where the image names none, ``diff_id`` None where
    it need not be checked; ``size`` is the blob's bytes.
    """

    media_type: str
    digest: str
    diff_id: str | None
    size: int
    compression: str
    open: Callable[[], Blob]

    @property
    def name(self) -> str:
        """What people are told: ``docker save`` names no digest, and then it is the diff-id."""
        return self.digest or self.diff_id or "without a digest"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a source may make us do.

    A layer may have ``max_layer_bytes`` uncompressed, and from a gigabyte on at most ``max_ratio`` times its compressed size: gzip cannot
    do more than 1,032, so what does is made to.
    """

    max_layer_bytes: int = 512 * 1024**3
    max_ratio: int = 1100


class LayerStream:
    """One layer being read. A context manager."""

    def __init__(self, layer: LayerBlob, limits: Limits) -> None:
        """Start reading at once."""
        self._layer = layer
        self._limits = limits
        self._queue: queue.Queue[bytes | ImageFSError | None] = queue.Queue(_QUEUE)
        self._stop = threading.Event()
        self._ended = False
        self.bytes_in = 0
        self.bytes_out = 0
        self._thread = threading.Thread(target=self._run, name="layer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def chunks(self) -> Iterator[bytes]:
        """Yield the layer's uncompressed bytes, about a megabyte at a time. Raises what is wrong with the layer where it shows."""
        while not self._ended:
            item = self._queue.get()
            if isinstance(item, bytes):
                yield item
            else:
                self._ended = True
                if item is not None:
                    raise item

    def finish(self) -> None:
        """Read what the consumer left (a tar's padding), and return when the digests are known to be right."""
        for _ in self.chunks():
            pass

    # -- on the thread --------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        end: ImageFSError | None = None
        try:
            blob = self._layer.open()
            try:
                self._copy(blob)
            finally:
                blob.close()
        except ImageFSError as error:
            end = error
        except Exception as error:  # noqa: BLE001 - a thread's exception must reach the consumer, whatever it is
            end = SourceError(f"layer {self._layer.name} cannot be read: {error}")
        self._put(end)

    def _put(self, item: bytes | ImageFSError | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def _copy(self, blob: Blob) -> None:
        layer = self._layer
        plain = hashlib.new(layer.diff_id.partition(":")[0]) if layer.diff_id is not None else None
        with _Hasher() as hasher:
            source = _Hashed(blob, (layer.digest or "sha256:").partition(":")[0], self, hasher)
            for chunk in _decompress(source, layer):
                self.bytes_out += len(chunk)
                self._check_limits()
                if plain is not None:
                    hasher.update(plain, chunk)
                self._put(chunk)
                if self._stop.is_set():
                    return
            while source.read(_CHUNK):
                # A decompressor may stop before the blob does; the digest is that of all of it.
                pass
        _check_blob(layer, self.bytes_in, source.hash)
        if layer.diff_id is not None and plain is not None and plain.hexdigest() != layer.diff_id.partition(":")[2]:
            raise SourceError(f"layer {layer.name} does not have the diff-id {layer.diff_id} that the image's config says")

    def _check_limits(self) -> None:
        limits = self._limits
        if self.bytes_out > limits.max_layer_bytes:
            raise LimitError(f"layer {self._layer.name} has more than {limits.max_layer_bytes} bytes uncompressed")
        if self.bytes_out > _RATIO_FROM and self.bytes_out > limits.max_ratio * self.bytes_in:
            raise LimitError(f"layer {self._layer.name} grows more than {limits.max_ratio} times: a decompression bomb")


class BlobChecks:
    """Layers of which only the blob is to be verified: on a thread of its own, while others are read. A context manager.

    Left without an error, it waits for all of them, and raises what is wrong with the first that is not what the image says.
    """

    def __init__(self) -> None:
        """Check nothing yet."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="layer-check")
        self._stop = threading.Event()
        self._checks: list[Future[int]] = []
        self.bytes_in = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            if error is None:
                for check in self._checks:
                    self.bytes_in += check.result()
        finally:
            self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, layer: LayerBlob) -> None:
        """Verify a layer's blob."""
        self._checks.append(self._pool.submit(self._check, layer))

    def _check(self, layer: LayerBlob) -> int:
        """Return how many bytes the blob has."""
        found: _Hash = hashlib.new(layer.digest.partition(":")[0])
        count = 0
        try:
            blob = layer.open()
            try:
                while not self._stop.is_set() and (data := blob.read(_CHUNK)):
                    found.update(data)
                    count += len(data)
            finally:
                blob.close()
        except OSError as error:
            raise SourceError(f"layer {layer.name} cannot be read: {error}") from error
        if not self._stop.is_set():
            _check_blob(layer, count, found)
        return count


def _check_blob(layer: LayerBlob, count: int, found: "_Hash") -> None:
    """Raise ``SourceError`` unless the blob, of ``count`` bytes, is the one that the image names."""
    if count != layer.size:
        raise SourceError(f"layer {layer.name} has {count} bytes, not the {layer.size} that the image says")
    if layer.digest and found.hexdigest() != layer.digest.partition(":")[2]:
        raise SourceError(f"layer {layer.name} is damaged: its bytes do not have that digest", hint="make or fetch the archive again")


class _Hasher:
    """A thread that hashes what it is given, in order. A context manager: leaving it waits until all of it is hashed."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[_Hash, bytes] | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._run, name="layer-hash", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def update(self, target: "_Hash", data: bytes) -> None:
        """Hash ``data`` into ``target``, which may be read after the context was left."""
        self._queue.put((target, data))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            item[0].update(item[1])


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Hashed(io.RawIOBase):
    """A blob that is hashed while it is read."""

    def __init__(self, blob: Blob, algorithm: str, stream: LayerStream, hasher: _Hasher) -> None:
        self._blob = blob
        self._stream = stream
        self._hasher = hasher
        self.hash: _Hash = hashlib.new(algorithm)
        self._ahead = b""

    def head(self) -> bytes:
        """Return the first bytes, enough to tell a compression by; they are read again."""
        found = b""
        while len(found) < _MAGIC_SIZE and (more := self.read(_MAGIC_SIZE)):
            found += more
        self._ahead = found
        return found

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._ahead and size >= len(self._ahead):
            data, self._ahead = self._ahead, b""
            return data
        data = self._blob.read(size if size > 0 else _CHUNK)
        if data:
            self._hasher.update(self.hash, data)
            self._stream.bytes_in += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def compression_of(head: bytes) -> str:
    """Return how a layer that begins with ``head`` is compressed, by its magic number (RFC 1952 and 8878)."""
    if head.startswith(b"\x1f\x8b"):
        return GZIP
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return ZSTD
    return PLAIN


def _decompress(source: _Hashed, layer: LayerBlob) -> Iterator[bytes]:
    """Decompress by what is there, not by the media type.

    skopeo leaves the media type of gzip on layers that it unpacked. The diff-id says whether it was right.
    """
    kind = compression_of(source.head())
    if kind == GZIP:
        return _gunzip(source, layer)
    if kind == ZSTD:
        return _unzstd(source, layer)
    return iter(lambda: source.read(_CHUNK), b"")


def _gunzip(source: _Hashed, layer: LayerBlob) -> Iterator[bytes]:
    """Decompress all members. Zeros may follow the last one, as some writers pad; nothing else may.

    ``read1`` makes one call into C a chunk. A ``decompressobj`` grows its result step by step and takes the interpreter's lock for each
    step, which costs up to 5 ms while another thread computes.
    """
    unzip: Any = igzip.IGzipFile
    read: Callable[[int], bytes] = unzip(fileobj=source, mode="rb").read1
    try:
        while out := read(_CHUNK):
            yield out
    except EOFError as error:
        raise SourceError(f"layer {layer.name} ends early: its gzip stream is cut off") from error
    except _GZIP_DAMAGE as error:
        raise SourceError(f"layer {layer.name} is damaged, or has something behind its end: {error}") from error


def _unzstd(source: _Hashed, layer: LayerBlob) -> Iterator[bytes]:
    """Decompress all frames; one that needs more than 128 MiB of history is refused."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
    reader = decompressor.stream_reader(cast("IO[bytes]", source), read_size=_CHUNK, read_across_frames=True)
    try:
        while out := reader.read(_CHUNK):
            yield out
    except zstandard.ZstdError as error:
        if "memory" in str(error).lower() or "window" in str(error).lower():
            raise LimitError(f"layer {layer.name} needs more than {_WINDOW_MAX >> 20} MiB of zstd window") from error
        raise SourceError(f"layer {layer.name} is damaged: {error}") from error
