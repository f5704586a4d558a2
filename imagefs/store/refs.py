"""Refs: the names that people give to images, and the only keys of a store that change.

A ref is written last, by compare-and-swap, and read first. ``NAME[:TAG]`` follows the OCI grammar, a registry's host and port included;
the colon of a port becomes ``+`` in the key, which no name contains. ``NAME@DIGEST`` and a bare digest name a manifest directly.
"""

import datetime
import difflib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from imagefs.digest import is_hex_digest
from imagefs.errors import ConflictError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from imagefs.store.base import ObjectStore, Start, manifest_key, ref_key

REF_FORMAT: Final = 1
_REF_MAX: Final = 64 * 1024
_TRIES: Final = 5
_FEW: Final = 5

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?"
_NAME: Final = re.compile(rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Ref:
    """A name and a tag."""

    name: str
    tag: str = "latest"

    def __str__(self) -> str:
        """``name:tag``, as it is typed."""
        return f"{self.name}:{self.tag}"

    @property
    def key(self) -> str:
        """The ref's key in a store."""
        return ref_key(self.name.replace(":", "+"), self.tag)

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Parse ``NAME[:TAG]``. ``UsageError`` if it is neither."""
        head, colon, tail = text.rpartition(":")
        name, tag = (head, tail) if colon and "/" not in tail else (text, "latest")
        if not _NAME.fullmatch(name) or not _TAG.fullmatch(tag) or len(name) > 255:
            raise UsageError(
                f"not a name for an image: {text[:300]!r}",
                hint="NAME[:TAG], the name in lower case: letters, digits, and single . _ - between them, / between its parts",
            )
        return cls(name, tag)


class RefDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ref holds: the manifest's hex digest, and when it was written (RFC 3339, UTC)."""

    manifest: str
    time: str
    format: int = REF_FORMAT


def read(store: ObjectStore, ref: Ref) -> RefDocument:
    """Return what a ref holds. ``NotFoundError`` names the nearest refs."""
    return _read(store, ref)[0]


def read_versioned(store: ObjectStore, ref: Ref) -> tuple[RefDocument, str]:
    """Return what a ref holds, and its version for :func:`move`. ``NotFoundError`` names the nearest refs."""
    return _read(store, ref)


def version_of(store: ObjectStore, ref: Ref) -> str | None:
    """Return a ref's version for :func:`move`, whatever it holds; None if it is not there."""
    try:
        return _start(store, ref).version
    except NotFoundError:
        return None


def _start(store: ObjectStore, ref: Ref) -> Start:
    """Read a ref. ``IntegrityError`` if it is longer than any is."""
    found = store.start(ref.key, _REF_MAX)
    if not found.is_all:
        raise IntegrityError(f"ref {ref} is longer than {_REF_MAX} bytes", hint="`imagefs rm` removes it")
    return found


def _read(store: ObjectStore, ref: Ref) -> tuple[RefDocument, str]:
    try:
        data, _, version = _start(store, ref)
    except NotFoundError:
        raise NotFoundError(f"the store has no image {ref}", hint=_nearest(store, ref)) from None
    try:
        document = msgspec.json.decode(data, type=RefDocument)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"ref {ref} is damaged: {error}", hint="`imagefs tag` or `imagefs convert` writes it anew") from error
    if document.format != REF_FORMAT:
        raise UnsupportedError(f"ref {ref} has format {document.format}: this version reads {REF_FORMAT}", hint="update imagefs")
    if not is_hex_digest(document.manifest):
        raise IntegrityError(f"ref {ref} is damaged: it names no manifest", hint="`imagefs tag` or `imagefs convert` writes it anew")
    return document, version


def resolve(store: ObjectStore, text: str) -> str:
    """Return the hex digest of the manifest that ``NAME[:TAG]``, ``NAME@DIGEST`` or ``DIGEST`` names."""
    digest = text.rpartition("@")[2]
    if is_hex_digest(digest):
        try:
            store.head(manifest_key(digest))
        except NotFoundError:
            raise NotFoundError(f"the store has no image with the digest {digest}", hint="`imagefs images` lists what there is") from None
        return digest
    if "@" in text:
        raise UsageError(f"not a digest: {digest[:80]!r}", hint="64 lower-case hex digits follow the @")
    return read(store, Ref.parse(text)).manifest


def publish(store: ObjectStore, ref: Ref, manifest: str) -> None:
    """Point ``ref`` at a manifest that is in the store. The last writer wins; none is lost halfway."""
    document = _document(manifest)
    for attempt in range(_TRIES):
        try:
            found = store.start(ref.key, _REF_MAX)
        except NotFoundError:
            version: str | None = None
        else:
            version = found.version if found.is_all else None
            if version is None:
                store.delete(ref.key)
        try:
            store.replace(ref.key, document, version=version)
        except ConflictError:
            if attempt + 1 == _TRIES:
                raise
        else:
            return


def move(store: ObjectStore, ref: Ref, manifest: str, *, version: str | None) -> None:
    """Point ``ref`` at a manifest that is in the store if it still has ``version`` (None: if it is absent), else leave it.

    ``ConflictError`` if somebody else was faster, unless he did the same.
    """
    try:
        store.replace(ref.key, _document(manifest), version=version)
    except ConflictError as error:
        with suppress(NotFoundError, IntegrityError, UnsupportedError):
            if read(store, ref).manifest == manifest:
                return
        raise ConflictError(f"{ref} was changed by somebody else meanwhile: it was left as it is now", hint="run it again") from error


def _document(manifest: str) -> bytes:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return msgspec.json.encode(RefDocument(manifest, now), order="sorted") + b"\n"


def remove(store: ObjectStore, ref: Ref) -> str:
    """Remove a ref, also a damaged one; return the manifest it pointed at (``""`` if that cannot be told). The image's content stays."""
    try:
        manifest = read(store, ref).manifest
    except (IntegrityError, UnsupportedError):
        manifest = ""
    store.delete(ref.key)
    return manifest


def list_refs(store: ObjectStore) -> Iterator[tuple[Ref, RefDocument]]:
    """Yield all refs with what they hold, by name and tag. A damaged one is left out."""
    for ref in _names(store):
        try:
            yield ref, read(store, ref)
        except (NotFoundError, IntegrityError, UnsupportedError):
            continue


def _names(store: ObjectStore) -> Iterator[Ref]:
    for info in store.list("refs/"):
        name, _, tag = info.key.removeprefix("refs/").rpartition("/")
        try:
            yield Ref.parse(f"{name.replace('+', ':')}:{tag}")
        except UsageError:
            continue


def _nearest(store: ObjectStore, ref: Ref) -> str:
    names = [str(known) for known in _names(store)]
    near = difflib.get_close_matches(str(ref), names, n=3, cutoff=0.5) or [name for name in names if name.startswith(f"{ref.name}:")][:3]
    if near:
        return f"did you mean {' or '.join(near)}?"
    if 0 < len(names) <= _FEW:
        return f"the store has {', '.join(names)}"
    return "`imagefs images` lists what there is" if names else "the store has no images yet: `imagefs convert SOURCE REF` makes one"
