"""Names: BLAKE3-256 digests, raw (32 bytes) inside the program, hex at its edges.

Digests of the OCI world (``sha256:…``) are a source's own and never leave ``imagefs.convert``.
"""

from blake3 import blake3

from imagefs.errors import UsageError

DIGEST_SIZE = 32
"""Bytes in a raw digest."""

Buffer = bytes | bytearray | memoryview
"""Any contiguous run of bytes that the layers hand to each other."""

Hasher = blake3
"""Streaming BLAKE3-256: ``update(buffer)``, ``digest() -> 32 bytes``. Releases the GIL on large buffers."""

_HEX_DIGITS = "0123456789abcdef"


def digest_of(data: Buffer) -> bytes:
    """Return the raw 32-byte BLAKE3-256 of ``data``."""
    return blake3(data).digest()


def is_hex_digest(text: str) -> bool:
    """Say whether ``text`` is a digest in its one accepted spelling: 64 lower-case hex digits."""
    return len(text) == 2 * DIGEST_SIZE and not text.strip(_HEX_DIGITS)


def from_hex(text: str) -> bytes:
    """Turn 64 lower-case hex digits into a raw digest; ``UsageError`` for anything else."""
    if not is_hex_digest(text):
        raise UsageError(f"not a digest: {text[:80]!r}", hint="a digest is 64 lower-case hex digits")
    return bytes.fromhex(text)
