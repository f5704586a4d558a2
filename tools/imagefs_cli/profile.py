"""``imagefs profile``: show, move and remove what is known of an image's starts."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from imagefs_cli import output
from imagefs_cli.options import GLOBAL_OPTIONS, Invocation, command, complete_file, complete_ref

if TYPE_CHECKING:
    from imagefs.format.manifest import Manifest
    from imagefs.format.objectmap import ObjectMap
    from imagefs.format.profile import Access, Profile
    from imagefs.store.base import ObjectStore
    from imagefs.store.pointers import PointerInfo

_PROGRAM_WIDTH: Final = 48

_SHOWN: Final = 40
"""Accesses that a person is shown, unless he asks for all."""


@click.group("profile", short_help="Show and move what is known of starts.", context_settings={"help_option_names": ["-h", "--help"]})
def profile_command() -> None:
    """Show, move and remove profiles: what an image's starts touch first, as hosts recorded it.

    They are recorded, published and merged by themselves.
    """


profile_command.params += GLOBAL_OPTIONS()


def _choice(function: Any) -> Any:
    """Add the options that choose which of an image's starts are meant."""
    options = (
        click.option("--key", "entry", metavar="TEXT", help="Of starts of this program: its arguments, joined by spaces."),
        click.option("--label", metavar="TEXT", help="Of starts that were given this label."),
        click.option("--id", "name", metavar="ID", help="The one with this id, as `ls` lists it."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _chosen(store: "ObjectStore", ref: str, entry: str | None, label: str | None, name: str | None) -> tuple[str, "Profile"]:
    """Return the manifest that a ref names and the profile that was asked for. ``NotFoundError`` where there is none."""
    from imagefs.errors import NotFoundError
    from imagefs.format.profile import Key
    from imagefs.store.profiles import fetch, read_one
    from imagefs.store.refs import resolve

    manifest = resolve(store, ref)
    if name is not None:
        if entry is not None or label is not None:
            raise click.UsageError("--id names one profile: --key and --label do not go with it")
        return manifest, read_one(store, manifest, name)
    key = None if entry is None and label is None else Key(entry or "", label or "")
    found = fetch(store, manifest, key, ignored=_say_ignored)
    if found is None:
        which = "starts" if key is None else "such starts"
        raise NotFoundError(f"the store has no profile of {which} of {ref}", hint=f"`imagefs profile ls {ref}` lists what it has")
    return manifest, found


def _say_ignored(name: str, error: Exception) -> None:
    output.say(f"passed over {name}: {error}")


@click.argument("ref", shell_complete=complete_ref)
def _ls(invocation: Invocation, ref: str) -> None:
    """List the profiles that the store has of image REF: the merges that starts use, and the recordings that they are made of."""
    from imagefs.store.profiles import listing
    from imagefs.store.refs import resolve

    store = invocation.store()
    manifest = resolve(store, ref)
    found = list(listing(store, manifest))
    if invocation.wants_json:
        output.print_json({"ref": ref, "manifest": manifest, "profiles": [_listed(info) for info in found]})
        return
    now = time.time()
    rows = []
    for info in found:
        pointer = info.pointer
        if pointer is None:
            rows.append([info.id, "?", "?", "?", output.age(now - info.recorded), info.problem, ""])
            continue
        kind = "merge" if pointer.is_merge else "start"
        rows.append(
            [
                info.id,
                kind,
                str(pointer.starts),
                output.size(pointer.size),
                output.age(now - info.recorded),
                output.short(pointer.key.entry, _PROGRAM_WIDTH),
                pointer.key.label,
            ]
        )
    output.table(["ID", "KIND", "STARTS", "SIZE", "AGE", "PROGRAM", "LABEL"], rows)


def _listed(info: "PointerInfo") -> dict[str, Any]:
    row: dict[str, Any] = {"id": info.id, "recorded": info.recorded, "problem": info.problem or None}
    if (pointer := info.pointer) is not None:
        row |= {
            "kind": "merge" if pointer.is_merge else "start",
            "starts": pointer.starts,
            "key": pointer.key._asdict(),
            "digest": pointer.digest,
            "size": pointer.size,
            "inputs": sorted(pointer.inputs),
        }
    return row


@click.argument("ref", shell_complete=complete_ref)
@_choice
@click.option("--all", "everything", is_flag=True, help="Each access; by default a person is shown the first ones.")
def _show(invocation: Invocation, ref: str, entry: str | None, label: str | None, name: str | None, everything: bool) -> None:
    """Show what the starts of image REF touch, in the order in which they need it; by default of all of them together."""
    from imagefs.format.profile import EVERY_START

    store = invocation.store()
    manifest, profile = _chosen(store, ref, entry, label, name)
    image = _Content.of(store, manifest)
    paths = image.paths(profile)
    accesses: list[dict[str, Any]] = [
        {
            "object": access.object.hex(),
            "path": paths.get(access.object),
            "start": access.start,
            "end": min(access.end, image.size_of(access) or access.end),
            "at_ms": access.at,
            "share": round(access.share / EVERY_START, 4),
        }
        for access in profile.accesses
    ]
    known = sum(image.bytes_of(access) for access in profile.accesses)
    if invocation.wants_json:
        summary = {"key": profile.key._asdict(), "starts": profile.starts, "objects": profile.columns.object_count, "bytes": known}
        output.print_json({"ref": ref, "manifest": manifest, "profile": summary | {"accesses": accesses}})
        return
    rows: list[tuple[str, object]] = [
        ("program", profile.key.entry or "(several, or not known)"),
        ("label", profile.key.label or "(none)"),
        ("starts", profile.starts),
        ("touched", f"{output.size(known)} of {profile.columns.object_count:,} objects, in {len(accesses):,} accesses"),
    ]
    output.pairs(rows)
    shown = accesses if everything else accesses[:_SHOWN]
    lines = [
        [f"{row['at_ms']:,} ms", f"{row['share']:.0%}", output.size(row["end"] - row["start"]), output.size(row["start"]), _named(row)]
        for row in shown
    ]
    output.table(["AT", "SHARE", "BYTES", "FROM", "FILE"], lines)
    if len(shown) < len(accesses):
        output.say(f"and {len(accesses) - len(shown):,} more; --all shows them")


def _named(row: dict[str, Any]) -> str:
    return row["path"] or f"{row['object'][:12]} (not in this image)"


@click.argument("ref", shell_complete=complete_ref)
@click.argument("file", shell_complete=complete_file)
@_choice
def _export(invocation: Invocation, ref: str, file: str, entry: str | None, label: str | None, name: str | None) -> None:
    """Write what is known of the starts of image REF to FILE, to import it elsewhere; by default of all of them together."""
    from imagefs.format.profile import encode

    manifest, profile = _chosen(invocation.store(), ref, entry, label, name)
    data = encode(profile)
    _write(Path(file), data)
    said = f"{len(profile.accesses):,} accesses of {profile.starts} starts, {output.size(len(data))}"
    _tell(invocation, {"file": file, "manifest": manifest, **_figures(profile), "size": len(data)}, said)


@click.argument("ref", shell_complete=complete_ref)
@click.argument("file", shell_complete=complete_file)
def _import(invocation: Invocation, ref: str, file: str) -> None:
    """Add the profile in FILE to those of image REF.

    It may be that of another image, since a profile goes by content: what REF does not have is left out, and how much it has is said.
    """
    from imagefs.errors import UsageError
    from imagefs.store.profiles import publish
    from imagefs.store.refs import resolve

    store = invocation.store()
    manifest = resolve(store, ref)
    given = _decoded(Path(file))
    image = _Content.of(store, manifest)
    kept = [access for access in given.accesses if image.bytes_of(access)]
    share = len(kept) / len(given.accesses) if len(given.accesses) else 0.0
    if not kept:
        raise UsageError(f"{ref} has nothing of what the profile in {file} speaks of", hint=f"it is of image {given.manifest[:12]}")
    profile = replace(given, manifest=manifest, accesses=kept)
    name = publish(store, profile, always=True, ignored=_say_ignored)
    size = sum(image.bytes_of(access) for access in kept)
    document = {"id": name, "manifest": manifest, "from": given.manifest, **_figures(profile), "bytes": size, "share": round(share, 4)}
    other = "" if given.manifest == manifest else f", which is of image {given.manifest[:12]}"
    _tell(invocation, document, f"{ref} has {share:.0%} of the profile{other}: {len(kept):,} accesses, {output.size(size)}")


@click.argument("ref", shell_complete=complete_ref)
@click.argument("names", nargs=-1, metavar="[ID]...")
def _rm(invocation: Invocation, ref: str, names: tuple[str, ...]) -> None:
    """Remove the profiles with these IDs from those of image REF; all of them, if none is given. What is left is merged anew."""
    from imagefs.store.profiles import remove
    from imagefs.store.refs import resolve

    store = invocation.store()
    manifest = resolve(store, ref)
    gone = remove(store, manifest, names, ignored=_say_ignored)
    _tell(invocation, {"ref": ref, "manifest": manifest, "removed": gone}, f"{len(gone)} removed")


@click.argument("out", shell_complete=complete_file)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=complete_file)
def _merge(invocation: Invocation, out: str, files: tuple[str, ...]) -> None:
    """Merge the profiles in FILEs into OUT. Which are newer, and so count for more, is told by the files' times of modification."""
    from imagefs.errors import ImageFSError
    from imagefs.format.profile import encode, merge_encoded

    paths = [Path(file) for file in files]

    def samples() -> Iterator[tuple[bytes, float]]:
        for path in paths:
            data = _read(path)
            yield data, path.stat().st_mtime

    try:
        merged = merge_encoded(samples())
    except ImageFSError:
        # Which one it is, the merge does not know.
        for path in paths:
            _decoded(path)
        raise
    data = encode(merged)
    _write(Path(out), data)
    said = f"{len(files)} profiles: {len(merged.accesses):,} accesses of {merged.starts} starts, {output.size(len(data))}"
    _tell(invocation, {"file": out, "manifest": merged.manifest, **_figures(merged), "size": len(data), "profiles": len(files)}, said)


def _figures(profile: "Profile") -> dict[str, Any]:
    return {"key": profile.key._asdict(), "starts": profile.starts, "accesses": len(profile.accesses)}


def _tell(invocation: Invocation, document: dict[str, Any], text: str) -> None:
    if invocation.wants_json:
        output.print_json(document)
    else:
        output.say(text)


def _decoded(path: Path) -> "Profile":
    """Read a profile from a file; what is wrong with it is told with the file's name."""
    from imagefs.errors import ImageFSError
    from imagefs.format.profile import decode

    data = _read(path)
    try:
        return decode(data)
    except ImageFSError as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from None


def _read(path: Path) -> bytes:
    from imagefs.errors import AccessError, LimitError, NotFoundError
    from imagefs.format.profile import MAX_PROFILE

    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise AccessError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_PROFILE:
        raise LimitError(f"{path} is longer than any profile, which has {MAX_PROFILE} bytes at most")
    return data


def _write(path: Path, data: bytes) -> None:
    """Write a file, which is there whole or as it was before."""
    from imagefs.errors import AccessError

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise AccessError(f"cannot write {path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Content:
    """What an image has of what a profile speaks of."""

    store: "ObjectStore"
    manifest: "Manifest"
    objects: "ObjectMap"

    @classmethod
    def of(cls, store: "ObjectStore", digest: str) -> "_Content":
        """Bring an image's object map."""
        from imagefs.format.objectmap import ObjectMap
        from imagefs.store.images import get_blob, get_manifest

        manifest = get_manifest(store, digest)
        return cls(store, manifest, ObjectMap(get_blob(store, manifest.objects.digest, manifest.objects.size)))

    def size_of(self, access: "Access") -> int:
        """Return the size of an access's object; 0 where the image has none such."""
        row = self.objects.find(access.object)
        return row.size if row is not None else 0

    def bytes_of(self, access: "Access") -> int:
        """Return how many bytes of an access the image has."""
        return max(0, min(access.end, self.size_of(access)) - access.start)

    def paths(self, profile: "Profile") -> dict[bytes, str]:
        """Return by which paths the objects of a profile are in the image."""
        from imagefs.format.erofs_reader import Tree
        from imagefs.format.tree_paths import object_paths
        from imagefs.store.images import get_blob

        tree = Tree(get_blob(self.store, self.manifest.tree.digest, self.manifest.tree.size))
        wanted = [name for name in profile.columns.names() if self.objects.find(name) is not None]
        return {name: os.fsdecode(path) for name, path in object_paths(tree, wanted).items()}


for _name, _function in (
    ("ls", _ls),
    ("show", _show),
    ("export", _export),
    ("import", _import),
    ("rm", _rm),
    ("merge", _merge),
):
    profile_command.add_command(command(_name)(_function))
