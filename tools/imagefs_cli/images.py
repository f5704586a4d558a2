"""``imagefs images``, ``inspect``, ``tag`` and ``rm``: what is in the store."""

import datetime

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_ref


@command("images", short_help="List the images in the store.")
def images_command(invocation: Invocation) -> None:
    """List the images in the store, by ref."""
    from imagefs.errors import ImageFSError
    from imagefs.store.images import get_manifest
    from imagefs.store.refs import list_refs

    store = invocation.store()
    found = []
    for ref, document in list_refs(store):
        row: dict[str, object] = {"ref": str(ref), "manifest": document.manifest, "time": document.time}
        try:
            manifest = get_manifest(store, document.manifest)
        except ImageFSError as error:
            row["problem"] = error.message
        else:
            platform = manifest.platform
            parts = (platform.os, platform.architecture, platform.variant)
            platform_text = "/".join(part for part in parts if part)
            row |= {"kind": manifest.kind, "platform": platform_text, "files": manifest.files, "bytes": manifest.bytes}
        found.append(row)
    if invocation.wants_json:
        output.print_json({"images": found})
        return
    rows = []
    for row in found:
        known = "problem" not in row
        rows.append(
            [
                str(row["ref"]),
                str(row["manifest"])[:12],
                str(row.get("kind", "?")),
                str(row.get("platform", "?")),
                f"{row['files']:,}" if known else "?",
                output.size(float(str(row["bytes"]))) if known else str(row["problem"]),
                _age(str(row["time"])),
            ]
        )
    output.table(["REF", "DIGEST", "KIND", "PLATFORM", "FILES", "SIZE", "AGE"], rows)


def _age(text: str) -> str:
    try:
        then = datetime.datetime.fromisoformat(text)
        seconds = (datetime.datetime.now(datetime.UTC) - then).total_seconds()
    except (ValueError, TypeError):
        return "?"
    return output.age(seconds)


@command("inspect", short_help="Show one image in full.")
@click.argument("ref", shell_complete=complete_ref)
def inspect_command(invocation: Invocation, ref: str) -> None:
    """Show image REF: its manifest, its configuration, its sizes. With --json the whole manifest."""
    import msgspec

    from imagefs.store.images import get_manifest
    from imagefs.store.refs import resolve

    store = invocation.store()
    digest = resolve(store, ref)
    manifest = get_manifest(store, digest)
    if invocation.wants_json:
        output.print_json({"ref": ref, "digest": digest, "manifest": msgspec.to_builtins(manifest)})
        return
    platform = manifest.platform
    runtime = manifest.config.get("config") or {}
    rows: list[tuple[str, object]] = [
        ("digest", digest),
        ("platform", "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)),
        ("files", f"{manifest.files:,} of {output.size(manifest.bytes)}"),
        ("tree", f"{manifest.tree.digest} ({output.size(manifest.tree.size)})"),
        ("object map", f"{manifest.objects.digest} ({output.size(manifest.objects.size)})"),
        ("frame size", output.size(manifest.frame_size)),
    ]
    rows += [
        (key.lower(), runtime[key])
        for key in ("Entrypoint", "Cmd", "User", "WorkingDir", "Env")
        if isinstance(runtime, dict) and runtime.get(key)
    ]
    rows += [("layer", f"{layer.digest}  {layer.media_type}") for layer in manifest.layers]
    rows += [("annotation", f"{key}={value}") for key, value in sorted(manifest.annotations.items())]
    output.pairs(rows)


@command("tag", short_help="Give an image another ref.")
@click.argument("ref", shell_complete=complete_ref)
@click.argument("new")
def tag_command(invocation: Invocation, ref: str, new: str) -> None:
    """Let NEW (NAME[:TAG]) point at what REF points at."""
    from imagefs.store.images import get_manifest
    from imagefs.store.refs import Ref, publish, resolve

    name = Ref.parse(new)
    store = invocation.store()
    digest = resolve(store, ref)
    get_manifest(store, digest)
    publish(store, name, digest)
    if invocation.wants_json:
        output.print_json({"ref": str(name), "manifest": digest})


@command("rm", short_help="Remove a ref.")
@click.argument("ref", shell_complete=complete_ref)
def rm_command(invocation: Invocation, ref: str) -> None:
    """Remove REF. The image's content stays in the store: other refs and mounts may use it."""
    from imagefs.store.refs import Ref, remove

    name = Ref.parse(ref)
    digest = remove(invocation.store(), name)
    if invocation.wants_json:
        output.print_json({"ref": str(name), "manifest": digest})
    else:
        output.say(f"removed {name}; its content stays in the store, as {digest[:12]}")
