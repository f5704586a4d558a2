"""Sparse maps in all their spellings: old GNU headers, and GNU's pax formats 0.0, 0.1 and 1.0.

Whatever the spelling, what comes out is the list of data segments ``(offset, length)``: in order, without overlap and without empty ones,
inside the file's logical size, and together exactly as long as the data that the archive stores. Anything else is a ``SourceError``.

What does not live here: reading the blocks that old GNU headers and format 1.0 continue in; the reader hands them over.
"""

from collections.abc import Callable, Sequence
from typing import Final

from imagefs.convert.pax import SPARSE_MAP, Records, decimal
from imagefs.convert.tar_header import BLOCK, SIZE_MAX, number
from imagefs.errors import LimitError, SourceError, UnsupportedError

SEGMENTS_MAX: Final = 1 << 18
"""Most segments of one file: a bound on memory. GNU tar writes one a hole."""

_SPARSE_COUNT: Final = b"GNU.sparse.numblocks"

Segments = list[tuple[int, int]]

_OLD_IN_HEADER: Final = 4
_OLD_IN_EXTENSION: Final = 21
_DIGITS_MAX: Final = 20


def checked(numbers: Sequence[int], size: int, stored: int) -> Segments:
    """Return the segments that ``numbers`` (offset, length, offset, length, …) describe.

    ``size`` is the file's logical size, ``stored`` the bytes of data in the archive.
    """
    segments: Segments = []
    end = total = 0
    for index in range(0, len(numbers), 2):
        offset, length = numbers[index], numbers[index + 1]
        if offset < end or length < 0 or offset + length > size:
            raise SourceError("the sparse map is out of order, overlaps, or goes past the end of the file")
        end = offset + length
        total += length
        if length:
            segments.append((offset, length))
    if total != stored:
        raise SourceError(f"the sparse map covers {total} bytes, but {stored} are stored")
    return segments


def old_gnu(block: bytes, next_block: Callable[[], bytes]) -> tuple[int, list[int]]:
    """Return (logical size, numbers) of an ``S`` header; ``next_block`` reads the extension headers that may follow it."""
    numbers: list[int] = []
    size = number(block[483:495])
    if not 0 <= size <= SIZE_MAX:
        raise SourceError(f"the sparse file's size is not between 0 and 2**63-1: {size}")
    more = _old_entries(block[386:], _OLD_IN_HEADER, numbers) and block[482]
    while more:
        if len(numbers) > 2 * SEGMENTS_MAX:
            raise _too_many()
        block = next_block()
        more = _old_entries(block, _OLD_IN_EXTENSION, numbers) and block[504]
    return size, numbers


def _old_entries(table: bytes, count: int, numbers: list[int]) -> bool:
    """Append the entries of one header; False if the table ended in it."""
    for index in range(0, 24 * count, 24):
        if not table[index]:
            return False
        numbers.append(number(table[index : index + 12]))
        numbers.append(number(table[index + 12 : index + 24]))
    return True


def pax_format(records: Records) -> str | None:
    """Return which of GNU's pax formats a file is in: ``"0"`` (0.0 and 0.1), ``"1.0"``, None for a file that is not sparse."""
    major, minor = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if (major is None and minor is None) or (major == b"0" and minor in (b"0", b"1")):
        return "0" if SPARSE_MAP in records or _SPARSE_COUNT in records else None
    if major == b"1" and minor == b"0":
        return "1.0"
    raise UnsupportedError(f"the layer has a sparse file of an unknown format: {major!r}.{minor!r}")


def pax_size(records: Records) -> int:
    """Return the logical size of a sparse file."""
    value = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
    if value is None:
        raise SourceError("the pax header has a sparse map, but not the file's size")
    return decimal(value, "sparse file size")


def pax_map(records: Records) -> list[int]:
    """Return the numbers of a format 0 map, which must be as many as the records say."""
    value = records.get(SPARSE_MAP, b"")
    if value.count(b",") >= 2 * SEGMENTS_MAX:
        raise _too_many()
    numbers = [decimal(part, "sparse map entry") for part in value.split(b",")] if value else []
    count = decimal(records[_SPARSE_COUNT], "sparse map count") if _SPARSE_COUNT in records else (len(numbers) + 1) // 2
    if len(numbers) != 2 * count:
        raise SourceError("the sparse map has not the number of entries that its header says")
    return numbers


def map_in_data(next_block: Callable[[], bytes]) -> tuple[int, list[int]]:
    """Return (bytes read, numbers) of a format 1.0 map: decimal lines in whole blocks at the start of the data, the first a count."""
    lines: list[bytes] = []
    rest = b""
    needed = 1
    taken = 0
    while len(lines) < needed:
        taken += BLOCK
        *whole, rest = (rest + next_block()).split(b"\n")
        if len(rest) > _DIGITS_MAX and len(lines) + len(whole) < needed:
            raise SourceError("the sparse map is not lines of numbers")
        if needed == 1 and whole:
            count = decimal(whole[0], "sparse map count")
            if count > SEGMENTS_MAX:
                raise _too_many()
            needed += 2 * count
        lines += whole
    return taken, [decimal(line, "sparse map entry") for line in lines[1:needed]]


def _too_many() -> LimitError:
    return LimitError(f"a sparse file has more than {SEGMENTS_MAX} segments")
