"""``imagefs snapshot ls`` and ``inspect``: which snapshots there are, what is in them, and whether this host can restore them."""

import time
from typing import TYPE_CHECKING, Any, Final

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_ref

if TYPE_CHECKING:
    from snapshotstore.compat import Host, Mismatch
    from snapshotstore.contents import File, Index
    from snapshotstore.listing import Listed, Listing, Snapshot
    from snapshotstore.manifest import Record

_REASON_WIDTH: Final = 60
_SHOWN: Final = 40
"""Files that a person is shown, unless he asks for all."""

_DIGEST: Final = 12


def host_of(invocation: Invocation) -> "Host":
    """Return the facts of this host, with the engines that work here."""
    from imagefs.errors import UnsupportedError
    from snapshotstore import compat
    from snapshotstore.runner.engines import Engines

    try:
        engines = [engine for _, engine in Engines(invocation.config().runtime).working()]
    except UnsupportedError:
        engines = []
    return compat.collect(engines)


def fit_of(found: "list[Mismatch]") -> dict[str, Any]:
    """Return whether a snapshot fits, and what speaks against it, as JSON has it."""
    from snapshotstore import compat

    return {
        "fits": compat.fits(found),
        "why_not": [mismatch.why for mismatch in found if mismatch.fatal],
        "warnings": [mismatch.why for mismatch in found if not mismatch.fatal],
    }


def image_of(record: "Record") -> str | None:
    """Return the manifest of the image that a program ran in; None where nobody told."""
    from snapshotstore.manifest import UNTOLD

    return None if record.oci.image == UNTOLD else record.oci.image


# -- ls -----------------------------------------------------------------------------------------------------------------------------------


@command("ls", short_help="List the snapshots in the store.")
@click.argument("name", required=False)
def ls_command(invocation: Invocation, name: str | None) -> None:
    """List the snapshots in the store, or those that are published as NAME, one a tag; and whether this host can restore them.

    NEW is what came with a snapshot; the rest of SIZE are pages that its lineage had, and zeros.
    """
    from concurrent.futures import ThreadPoolExecutor

    from snapshotstore.listing import listing

    store = invocation.store()
    try:
        # An engine is asked what it is while the store is.
        with ThreadPoolExecutor(1) as pool:
            host = pool.submit(host_of, invocation)
            found = listing(store, name)
            here = host.result()
    finally:
        store.close()
    rows = [_row(listed, here, found) for listed in found.snapshots]
    unreadable = [{"ref": str(ref), "problem": error.message} for ref, error in found.unreadable]
    if invocation.wants_json:
        output.print_json({"snapshots": rows, "unreadable": unreadable})
        return
    output.table(["REF", "LINEAGE", "ENGINE", "IMAGE", "SIZE", "NEW", "AGE", "FITS THIS HOST"], [_line(row) for row in rows])
    for one in unreadable:
        output.say(f"{one['ref']} cannot be read: {one['problem']}")


def _row(listed: "Listed", here: "Host", found: "Listing") -> dict[str, Any]:
    from snapshotstore import compat

    row: dict[str, Any] = {"ref": str(listed.ref), "manifest": listed.name, "files": listed.manifest.files, "bytes": listed.manifest.bytes}
    record = listed.record
    if record is None:
        return row | {"fits": False, "problem": "" if listed.problem is None else listed.problem.message}
    return row | {
        "lineage": record.lineage,
        "app": record.python.entry if record.python is not None else "",
        "engine": {"name": record.runtime.engine, "version": record.runtime.version, "format": record.runtime.format},
        "image": image_of(record),
        "image_refs": [str(one.ref) for one in found.images if one.manifest == record.oci.image],
        "bytes_unique": record.economics.unique,
        "created": record.created,
        "quarantined": record.economics.quarantined or None,
        "problem": None,
        **fit_of(compat.match(record, here)),
    }


def _line(row: dict[str, Any]) -> list[str]:
    size = output.size(row["bytes"])
    if row["problem"] is not None:
        return [row["ref"], "?", "?", "?", size, "?", "?", output.short(f"no: {row['problem']}", _REASON_WIDTH)]
    fits = "yes" if row["fits"] else f"no: {row['why_not'][0]}"
    return [
        row["ref"],
        output.short(row["app"] or row["lineage"], _SHOWN),
        f"{row['engine']['name']} {row['engine']['version']}",
        row["image_refs"][0] if row["image_refs"] else (row["image"] or "?")[:_DIGEST],
        size,
        "?" if row["bytes_unique"] is None else output.size(row["bytes_unique"]),
        output.age(time.time() - row["created"]),
        output.short(fits, _REASON_WIDTH),
    ]


# -- inspect ------------------------------------------------------------------------------------------------------------------------------


@command("inspect", short_help="Show one snapshot in full.")
@click.argument("ref", shell_complete=complete_ref)
@click.option("--all", "everything", is_flag=True, help="All files; by default a person is shown the first ones.")
def inspect_command(invocation: Invocation, ref: str, *, everything: bool) -> None:
    """Show snapshot REF: its record, its files and its memory by pages, and whether this host can restore it, and if not, why not.

    Of the memory, zero pages are stored nowhere, new ones came with this snapshot, and shared ones were there: older members of its lineage
    have them too. What was measured when it was made is in the record; `here` is what this host has measured since.
    """
    from snapshotstore import compat, contents
    from snapshotstore.repository import inspect
    from snapshotstore.runner.timeline import measured
    from snapshotstore.runner.workplace import logs_folder

    store = invocation.store()
    try:
        snapshot = inspect(store, ref)
        index = contents.open_index(store, snapshot)
        files = list(contents.files(index.tree))
        fit = fit_of(compat.match(snapshot.record, host_of(invocation)))
    finally:
        store.close()
    memory = [_memory(index, file) for file in files if file.is_memory]
    restores, seconds = measured(logs_folder(invocation.config().runtime), snapshot.name)
    if invocation.wants_json:
        output.print_json(_document(snapshot, index, files, memory) | fit | {"here": {"restores": restores, "restore_p50": seconds}})
        return
    here = [] if seconds is None else [("restored here", f"{restores:,} times of late, in {seconds:.3g} s (median)")]
    output.pairs([*_pairs(snapshot, index, fit), *here])
    click.echo()
    _print_memory(memory)
    shown = files if everything else files[:_SHOWN]
    output.table(["MODE", "SIZE", "FILE"], [[f"{file.mode:04o}", output.size(file.size), _named(file)] for file in shown])
    if len(shown) < len(files):
        output.say(f"and {len(files) - len(shown):,} more; --all shows them")


def _named(file: "File") -> str:
    return file.path + ("" if file.kind == "file" else "/" if file.kind == "directory" else f"  ({file.kind})")


def _memory(index: "Index", file: "File") -> dict[str, Any]:
    from snapshotstore.contents import memory_of

    row = None if file.object is None else index.objects.find(file.object)
    if row is None:
        from imagefs.errors import IntegrityError

        raise IntegrityError(f"the object map has no {file.path}")
    found = memory_of(index, row)
    return {"path": file.path, "bytes": found.size, "zero": found.zero, "new": found.own, "shared": found.shared}


def _print_memory(memory: list[dict[str, Any]]) -> None:
    from snapshotstore.fingerprints import PAGE

    def pages(count: int | None) -> str:
        return "?" if count is None else f"{-(-count // PAGE):,}"

    if memory:
        columns = ("bytes", "zero", "new", "shared")
        output.table(
            ["MEMORY", "PAGES", "ZERO", "NEW", "SHARED"], [[row["path"], *(pages(row[name]) for name in columns)] for row in memory]
        )
        click.echo()


def _document(snapshot: "Snapshot", index: "Index", files: "list[File]", memory: list[dict[str, Any]]) -> dict[str, Any]:
    import msgspec

    from snapshotstore import manifest

    found = snapshot.manifest
    return {
        "ref": snapshot.ref,
        "digest": snapshot.name,
        "record": msgspec.to_builtins(snapshot.record),
        "sizes": {
            "files": found.files,
            "bytes": found.bytes,
            "bytes_unique": snapshot.record.economics.unique,
            "tree": msgspec.to_builtins(found.tree),
            "object_map": msgspec.to_builtins(found.objects),
            "page_tables": msgspec.to_builtins(manifest.pages_of(found.annotations)),
            "packs": index.objects.pack_count,
            "frames": index.objects.frame_count,
        },
        "memory": memory,
        "files": [
            {
                "path": file.path,
                "type": file.kind,
                "mode": f"{file.mode:04o}",
                "size": file.size,
                "object": file.object.hex() if file.object is not None else None,
            }
            for file in files
        ],
    }


def _pairs(snapshot: "Snapshot", index: "Index", fit: dict[str, Any]) -> list[tuple[str, object]]:
    record, found = snapshot.record, snapshot.manifest
    unique = record.economics.unique
    new = "" if unique is None else f", {output.size(unique)} of it stored with this snapshot"
    rows: list[tuple[str, object]] = [
        ("digest", snapshot.name),
        ("files", f"{found.files:,} of {output.size(found.bytes)}{new}"),
        ("index", f"tree {output.size(found.tree.size)}, object map {output.size(found.objects.size)}, {index.objects.pack_count:,} packs"),
        *_record_pairs(record),
        ("fits this host", "yes" if fit["fits"] else "no"),
    ]
    rows += [("why not", why) for why in fit["why_not"]]
    return rows + [("warning", why) for why in fit["warnings"]]


def _record_pairs(record: "Record") -> list[tuple[str, object]]:
    runtime, cpu, worth = record.runtime, record.cpu, record.economics
    exact = ", for this version alone" if runtime.exact else ""
    rows: list[tuple[str, object]] = [
        ("engine", f"{runtime.engine} {runtime.version} (format {runtime.format}{exact})"),
        ("cpu", f"{cpu.arch} {cpu.vendor}, {len(cpu.features)} features, pages of {cpu.page_size} bytes"),
        ("kernel", record.kernel),
        ("image", image_of(record) or "(not told)"),
        ("lineage", record.lineage),
        ("key", record.key),
        ("made", f"{output.age(time.time() - record.created)} ago"),
    ]
    if runtime.flags:
        rows.append(("flags", " ".join(runtime.flags)))
    if record.oci.mounts:
        rows.append(("mounts", " ".join(record.oci.mounts)))
    if record.python is not None:
        rows.append(("program", f"{record.python.entry or ' '.join(record.python.argv)}, Python {record.python.version}"))
    if record.gpu is not None:
        rows.append(("gpu", f"{record.gpu.count} x {record.gpu.model}, driver {record.gpu.driver}, CUDA {record.gpu.cuda}"))
    if record.parent is not None:
        rows.append(("parent", record.parent))
    for name, seconds in (("cold start", worth.cold_p50), ("restore", worth.restore_p50)):
        if seconds is not None:
            rows.append((name, f"{seconds:.3g} s"))
    if worth.failures:
        rows.append(("failures", f"{worth.failures:,}"))
    if worth.quarantined:
        rows.append(("in quarantine", worth.quarantined))
    return rows
