"""What can be asked over the control socket: one JSON object a line, ``{"op": "...", ...}``.

The answer is ``{"ok": true, "result": {...}}`` or ``{"ok": false, "error": {"type", "exit_code", "message", "hint"}}``. Unknown fields
are refused.
"""

from typing import Final

import msgspec

from imagefs.daemon.wire import described
from imagefs.errors import ImageFSError

LINE_MAX: Final = 64 * 1024
"""Bytes of a request, at most."""


class Ping(msgspec.Struct, tag_field="op", tag="ping", forbid_unknown_fields=True):
    """Ask whether anybody is there."""


class Status(msgspec.Struct, tag_field="op", tag="status", forbid_unknown_fields=True):
    """Ask who it is, and what is mounted."""


class Stats(msgspec.Struct, tag_field="op", tag="stats", forbid_unknown_fields=True):
    """Ask for all figures."""


class Top(msgspec.Struct, tag_field="op", tag="top", forbid_unknown_fields=True):
    """Ask who reads what. From the first question on programs are told apart, until nobody has asked for a while."""


class Reload(msgspec.Struct, tag_field="op", tag="reload", forbid_unknown_fields=True):
    """Replace the process that serves by a new one, with the code that is on disk now."""


class Stop(msgspec.Struct, tag_field="op", tag="stop", forbid_unknown_fields=True):
    """Unmount everything and end."""


class Mount(msgspec.Struct, tag_field="op", tag="mount", forbid_unknown_fields=True, kw_only=True):
    """Mount an image at an absolute path.

    ``manifest`` is its hex digest; without it ``ref`` is resolved. ``namespace`` is the inode number of the caller's mount namespace (0:
    not told). ``upper`` is the absolute path of a writable layer; it, ``dev`` (devices work) and ``suid`` need kernel mode. ``record``:
    what is read at first is recorded. ``prefetch``: what a profile names is fetched ahead; ``wait`` is the share of that which is to be
    there before the answer comes. ``label`` names the kind of start, for both.
    """

    mountpoint: str
    ref: str = ""
    manifest: str | None = None
    mode: str = "auto"
    upper: str = ""
    dev: bool = False
    suid: bool = False
    record: bool = True
    label: str = ""
    namespace: int = 0
    prefetch: bool = True
    wait: float = 0.0


class Umount(msgspec.Struct, tag_field="op", tag="umount", forbid_unknown_fields=True, kw_only=True):
    """Unmount an absolute path; ``lazy`` lets those who use it finish."""

    mountpoint: str
    lazy: bool = False


class Explain(msgspec.Struct, tag_field="op", tag="explain", forbid_unknown_fields=True, kw_only=True):
    """Ask where it is written down what happened since an absolute path was mounted; of a start that is running that is written now."""

    mountpoint: str


class Prefetch(msgspec.Struct, tag_field="op", tag="prefetch", forbid_unknown_fields=True, kw_only=True):
    """Bring an image's index, and what its profile names, to this host; ``wait``: answer when that is done.

    ``manifest`` is its hex digest; without it ``ref`` is resolved. ``label`` names the kind of start that the profile is to be of.
    """

    ref: str = ""
    manifest: str | None = None
    label: str = ""
    wait: bool = False


class Warm(msgspec.Struct, tag_field="op", tag="warm", forbid_unknown_fields=True, kw_only=True):
    """Bring all of an image to this host, or say how far that is; ``begin``: also if it is over already, or was never asked for.

    ``manifest`` is its hex digest; without it ``ref`` is resolved.
    """

    ref: str = ""
    manifest: str | None = None
    begin: bool = True


class Cache(msgspec.Struct, tag_field="op", tag="cache", forbid_unknown_fields=True, kw_only=True):
    """Ask something of the SSD tier.

    ``action`` is ``status``, ``pin``, ``unpin``, ``evict``, ``verify``, ``clear`` or ``limit``. ``ref`` names an image; ``bytes`` says how
    much is to go; ``limit`` and ``floor`` are bounds in bytes; ``pinned``: what is pinned too.
    """

    action: str
    ref: str = ""
    bytes: int = 0
    limit: int | None = None
    floor: int | None = None
    pinned: bool = False


Request = Ping | Status | Stats | Top | Reload | Stop | Mount | Umount | Explain | Prefetch | Warm | Cache

decoder: Final = msgspec.json.Decoder(Request)


def success(result: dict[str, object]) -> bytes:
    """Encode an answer."""
    return msgspec.json.encode({"ok": True, "result": result}) + b"\n"


def failure(error: ImageFSError) -> bytes:
    """Encode an error so that the client can raise it again."""
    return msgspec.json.encode({"ok": False, "error": described(error)}) + b"\n"
