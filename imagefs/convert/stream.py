"""A layer's bytes: read, decompressed and verified on a thread of its own, so that whoever parses them does not wait for the arithmetic.

Invariants: at most ``_QUEUE`` chunks wait; nothing is passed on beyond the limits; :meth:`LayerStream.finish` returns only if the blob was whole and its
size, its digest and its diff-id are what the image says. Leaving the context stops and joins the thread, whatever state it is in.

Who owns what: the thread owns the blob, the decompressor and the hashes; the consumer owns the queue's other end. ``bytes_in`` and ``bytes_out``
are written by the thread and may be read by anyone.
"""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import zstandard
from isal import isal_zlib

from imagefs.errors import ImageFSError, LimitError, SourceError, UnsupportedError

_CHUNK: Final = 1024 * 1024
_QUEUE: Final = 8
_WINDOW_MAX: Final = 128 * 1024 * 1024
_RATIO_FROM: Final = 1024 * 1024 * 1024

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

    ``digest`` and ``diff_id`` are ``algorithm:hex``, ``digest`` is ``""`` where the image names none; ``size`` is the blob's bytes.
    """

    media_type: str
    digest: str
    diff_id: str | None
    size: int
    compression: str
    open: Callable[[], Blob]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a source may make us do.

    A layer may have ``max_layer_bytes`` uncompressed, and from a gigabyte on at most ``max_ratio`` times its compressed size: gzip cannot do
    more than 1,032, so what does is made to.
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

    def __enter__(self) -> "LayerStream":
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
            end = SourceError(f"layer {self._layer.digest} cannot be read: {error}")
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
        source = _Hashed(blob, (layer.digest or "sha256:").partition(":")[0], self)
        plain = hashlib.new((layer.diff_id or "sha256:").partition(":")[0])
        for chunk in _decompress(source, layer):
            self.bytes_out += len(chunk)
            self._check_limits()
            plain.update(chunk)
            self._put(chunk)
            if self._stop.is_set():
                return
        if self.bytes_in != layer.size:
            raise SourceError(f"layer {layer.digest} has {self.bytes_in} bytes, not the {layer.size} that the image says")
        if layer.digest and source.hash.hexdigest() != layer.digest.partition(":")[2]:
            raise SourceError(f"layer {layer.digest} is damaged: its bytes do not have that digest", hint="make or fetch the archive again")
        if layer.diff_id is not None and plain.hexdigest() != layer.diff_id.partition(":")[2]:
            raise SourceError(f"layer {layer.digest} does not have the diff-id {layer.diff_id} that the image's config says")

    def _check_limits(self) -> None:
        limits = self._limits
        if self.bytes_out > limits.max_layer_bytes:
            raise LimitError(f"layer {self._layer.digest} has more than {limits.max_layer_bytes} bytes uncompressed")
        if self.bytes_out > _RATIO_FROM and self.bytes_out > limits.max_ratio * self.bytes_in:
            raise LimitError(f"layer {self._layer.digest} grows more than {limits.max_ratio} times: a decompression bomb")


class _Hashed:
    """A blob that is hashed while it is read."""

    def __init__(self, blob: Blob, algorithm: str, stream: LayerStream) -> None:
        self._blob = blob
        self._stream = stream
        self.hash = hashlib.new(algorithm)

    def read(self, size: int = -1) -> bytes:
        data = self._blob.read(size if size > 0 else _CHUNK)
        self.hash.update(data)
        self._stream.bytes_in += len(data)
        return data


def _decompress(source: _Hashed, layer: LayerBlob) -> Iterator[bytes]:
    if layer.compression == GZIP:
        return _gunzip(source, layer)
    if layer.compression == ZSTD:
        return _unzstd(source, layer)
    if layer.compression == PLAIN:
        return iter(lambda: source.read(_CHUNK), b"")
    raise UnsupportedError(f"layer {layer.digest} is compressed with {layer.compression}")


def _gunzip(source: _Hashed, layer: LayerBlob) -> Iterator[bytes]:
    """Decompress all members. Zeros may follow the last one, as some writers pad; nothing else may."""
    data = source.read(_CHUNK)
    first = True
    while data:
        if not first and not data.strip(b"\0"):
            data = source.read(_CHUNK)
            continue
        member = isal_zlib.decompressobj(wbits=31)
        try:
            while not member.eof:
                if not data:
                    data = source.read(_CHUNK)
                    if not data:
                        raise SourceError(f"layer {layer.digest} ends early: its gzip stream is cut off")
                out = member.decompress(data, _CHUNK)
                data = member.unconsumed_tail
                if out:
                    yield out
        except isal_zlib.error as error:
            if first or member.eof:
                raise SourceError(f"layer {layer.digest} is damaged: {error}") from error
            raise SourceError(f"layer {layer.digest} has something behind its end: {error}") from error
        data = member.unused_data or source.read(_CHUNK)
        first = False


def _unzstd(source: _Hashed, layer: LayerBlob) -> Iterator[bytes]:
    """Decompress all frames; one that needs more than 128 MiB of history is refused."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
    reader = decompressor.stream_reader(source, read_size=_CHUNK, read_across_frames=True)
    try:
        while out := reader.read(_CHUNK):
            yield out
    except zstandard.ZstdError as error:
        if "memory" in str(error).lower() or "window" in str(error).lower():
            raise LimitError(f"layer {layer.digest} needs more than {_WINDOW_MAX >> 20} MiB of zstd window") from error
        raise SourceError(f"layer {layer.digest} is damaged: {error}") from error
