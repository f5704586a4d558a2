"""JSON as it goes over the control socket, by the C part of the standard library's ``json`` alone.

The package around that loads ``re``, which takes as long as everything else together that a mount's command does; what the C part cannot do
by itself gets the package.
"""

from _json import encode_basestring_ascii, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class _Rules:
    """What the C part wants to be told to do as ``json.loads`` does."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


_scan = make_scanner(_Rules)  # type: ignore[arg-type] # it is for anything with these attributes


def encoded(document: "Mapping[str, Any]") -> bytes:
    """Encode an object."""
    members = [f"{encode_basestring_ascii(name)}: {_plain(value)}" for name, value in document.items()]
    return f"{{{', '.join(members)}}}".encode()


def _plain(value: "Any") -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, int) or (isinstance(value, float) and value - value == 0):
        return repr(value)
    import json

    return json.dumps(value)


def decoded(data: bytes) -> "Any":
    """Decode a document; ``ValueError`` if it is none."""
    text = data.decode().strip(" \t\n\r")
    try:
        document, end = _scan(text, 0)
    except (StopIteration, RecursionError) as error:
        raise ValueError("not JSON") from error
    if end != len(text):
        raise ValueError("more than one JSON document")
    return document
