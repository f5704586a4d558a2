"""The Start document: what happened since an image was mounted, event by event. It is specified in ``docs/format/start.md``.

The daemon writes one for each start that it watches; ``imagefs explain`` and profiles are made from them. A document may come from anywhere
(``imagefs explain FILE``), so it is not believed: it is bounded before it is parsed, each value is of its type, and each index leads
somewhere, or it is refused.

Times are in microseconds since ``began``; -1 stands for what has not happened. Unknown members, and columns that follow the known ones, are
ignored: later versions of the same format may have more. What does not live here: what a document tells
(``imagefs_cli.explain``), and where documents are kept (the daemon's side).
"""

from typing import Annotated, Any, Final

import msgspec
import zstandard

from imagefs.digest import Buffer
from imagefs.errors import IntegrityError, LimitError, UnsupportedError

START_FORMAT: Final = 1
MAX_START: Final = 64 * 1024 * 1024
"""Bytes of a document, not compressed, at most: three times what the bounds of recording allow."""

TREE, RAM, SSD, STORE = range(4)
"""Where a read was served from: its column ``tier``."""

TIERS: Final = ("tree", "ram", "ssd", "store")

DEMAND, PROFILE, ALONG, AHEAD = range(4)
"""Why a GET was made: for a reader, of a profile, beside one for a reader, ahead of one who reads in order. Its column ``kind``."""

KINDS: Final = ("demand", "profile", "along", "ahead")

SHARE_ALL: Final = 65535
"""A file's ``profiled`` that stands for every start."""

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Time = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
Index = Annotated[int, msgspec.Meta(ge=-1, le=2**31)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Flag = Annotated[int, msgspec.Meta(ge=0, le=1)]
Share = Annotated[int, msgspec.Meta(ge=0, le=SHARE_ALL)]
Choice = Annotated[int, msgspec.Meta(ge=0, le=3)]
Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
HexOrNone = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]


class Lost(msgspec.Struct, frozen=True):
    """Events that found no room, by kind."""

    opens: Count = 0
    reads: Count = 0
    gets: Count = 0


class Host(msgspec.Struct, frozen=True):
    """Where it happened."""

    kernel: str = ""
    cpus: Count = 0


class Extent(msgspec.Struct, frozen=True):
    """How large the image is: files, bytes of content, bytes as stored."""

    files: Count = 0
    bytes: Count = 0
    stored: Count = 0


class Optimized(msgspec.Struct, frozen=True):
    """That ``imagefs optimize`` made this image: the manifest that it was made from, and what was expected of it."""

    manifest: HexOrNone = msgspec.field(name="from", default="")
    expected_gain: Any = None


class Key(msgspec.Struct, frozen=True):
    """Whose profile it is."""

    entry: str = ""
    label: str = ""
    gpu: str = ""


class Prefetched(msgspec.Struct, frozen=True):
    """The profile that was prefetched from: made of so many starts, and what it names, as content and as stored."""

    starts: Count = 0
    accesses: Count = 0
    bytes: Count = 0
    stored: Count = 0
    key: Key = Key()


class File(msgspec.Struct, frozen=True):
    """A file that was opened or read. ``object`` is empty where its content lies in the tree; ``profiled`` is its share in the profile.

    ``fetched`` is how much of its content GETs brought during the start; -1 where nobody has looked.
    """

    path: str
    object: HexOrNone = ""
    size: Count = 0
    profiled: Share = 0
    fetched: Annotated[int, msgspec.Meta(ge=-1, le=2**53)] = -1


class Process(msgspec.Struct, frozen=True):
    """Who opened files, as far as known. ``parent`` is an index; -1: none of these."""

    pid: Count
    command: str = ""
    parent: Index = -1


class Open(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file was opened. ``native``: the kernel had its content, so its reads are not seen."""

    at: Time
    file: Count
    process: Index
    native: Flag


class Read(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The daemon answered a read of bytes ``start`` to ``end`` of a file.

    ``wait`` is how long it took; ``get`` is the GET that it waited for last, or -1.
    """

    at: Time
    wait: Count
    file: Count
    start: Count
    end: Count
    tier: Choice
    process: Index
    get: Index


class Get(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes ``start`` to ``end`` of a pack were asked for, which are ``content`` bytes of content.

    It came to the gate (``queued``), was sent, brought its first and its last byte (``first`` is ``arrived`` where that is not known), and
    was decoded and verified. ``promoted`` is when a reader came to wait for it; ``decode_cpu`` and ``verify_cpu`` add up its threads.
    """

    queued: Time
    sent: Time
    first: Time
    arrived: Time
    decoded: Time
    decode_cpu: Count
    verify_cpu: Count
    pack: Index
    start: Count
    end: Count
    content: Count
    kind: Choice
    promoted: Time
    attempts: Count


class Touched(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes of a file that were used, as far as known."""

    file: Count
    start: Count
    end: Count


class Stats(msgspec.Struct, frozen=True):
    """What the daemon counted for this image meanwhile."""

    store_bytes: Count = 0
    prefetch_bytes: Count = 0
    prefetch_used_bytes: Count = 0
    bytes_read: dict[str, Count] = {}


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A start. Its members are described in ``docs/format/start.md``."""

    manifest: Hex
    began: Seconds
    seconds: Seconds
    ended: str
    format: int = START_FORMAT
    kind: str = "start"
    ref: str = ""
    mountpoint: str = ""
    mode: str = ""
    label: str = ""
    entry: list[str] = []
    gpu: str = ""
    watched: bool = False
    lost: Lost = Lost()
    host: Host = Host()
    image: Extent = Extent()
    optimized: Optimized | None = None
    profile: Prefetched | None = None
    files: list[File] = []
    processes: list[Process] = []
    packs: list[Hex] = []
    opens: list[Open] = []
    reads: list[Read] = []
    gets: list[Get] = []
    touched: list[Touched] = []
    stats: Stats = Stats()


class Head(msgspec.Struct, frozen=True):
    """What a document is about, without its events."""

    format: int
    kind: str
    manifest: Hex = ""
    ref: str = ""
    mountpoint: str = ""
    label: str = ""
    mode: str = ""
    ended: str = ""
    began: Seconds = 0.0
    seconds: Seconds = 0.0
    profile: Prefetched | None = None


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Start)
_head_decoder: Final = msgspec.json.Decoder(Head)


def encode(start: Start) -> bytes:
    """Return a document as JSON."""
    return _encoder.encode(start)


def decode(data: Buffer) -> Start:
    """Read a document, as JSON or compressed by zstd.

    ``LimitError`` past ``MAX_START``, ``UnsupportedError`` for another format or kind, ``IntegrityError`` for anything that is no such
    document.
    """
    text = plain(data)
    decode_head(text)
    try:
        start = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"not a start: {error}") from None
    _check(start)
    return start


def decode_head(data: Buffer) -> Head:
    """Read what a document is about. Errors are those of :func:`decode`; the events are not looked at."""
    try:
        head = _head_decoder.decode(plain(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"not a start: {error}") from None
    if head.kind != "start":
        raise UnsupportedError(f"a document of kind {head.kind!r} is not a start")
    if head.format != START_FORMAT:
        raise UnsupportedError(f"start format {head.format} is not known", hint="a newer version of ImageFS wrote it")
    return head


def compressed(data: Buffer) -> bytes:
    """Return a document as it is kept on disk."""
    return zstandard.ZstdCompressor(level=3).compress(data)


def plain(data: Buffer) -> Buffer:
    """Return a document as JSON, whether it is compressed or not. ``LimitError``, ``IntegrityError``."""
    if bytes(data[:4]) == _ZSTD_MAGIC:
        try:
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as reader:
                data = reader.read(MAX_START + 1)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"not a start: it does not decompress: {error}") from None
    if len(data) > MAX_START:
        raise LimitError(f"a start of more than {MAX_START} bytes")
    return data


def _check(start: Start) -> None:
    """Raise ``IntegrityError`` where an index leads nowhere, or a range is none."""
    files, processes, packs, gets = len(start.files), len(start.processes), len(start.packs), len(start.gets)
    sound = (
        all(process.parent < processes for process in start.processes)
        and all(opened.file < files and opened.process < processes for opened in start.opens)
        and all(read.file < files and read.process < processes and read.get < gets and read.start <= read.end for read in start.reads)
        and all(get.pack < packs and get.start <= get.end for get in start.gets)
        and all(touched.file < files and touched.start <= touched.end for touched in start.touched)
    )
    if not sound:
        raise IntegrityError("not a start: an event names what is not there")
