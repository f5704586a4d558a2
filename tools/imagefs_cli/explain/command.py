"""``imagefs explain``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_file, complete_ref

if TYPE_CHECKING:
    from imagefs.config import Config
    from imagefs.format.start import Start
    from imagefs_cli.explain.analysis import Analysis
    from imagefs_cli.explain.verdict import Known


@command("explain", short_help="Show where the time of a start went.")
@click.argument("target", required=False, metavar="[MOUNTPOINT|REF|FILE]", shell_complete=complete_ref)
@click.option("--start", "number", type=click.IntRange(min=1), default=1, metavar="N", help="The N-th last start, 1 being the last.")
@click.option("--list", "is_list", is_flag=True, help="List the starts that are kept on this host.")
@click.option(
    "--compare", metavar="TARGET", shell_complete=complete_ref, help="Beside another start; with the same target: the one before."
)
@click.option(
    "--rows", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="N", help="Rows of the tables of waits and files."
)
@click.option("--perfetto", metavar="FILE", shell_complete=complete_file, help="Write a trace for https://ui.perfetto.dev.")
@click.option("--html", metavar="FILE", shell_complete=complete_file, help="Write a page to look at in a browser.")
@click.option("--export", metavar="FILE", shell_complete=complete_file, help="Write the document itself, which FILE reads.")
def explain_command(
    invocation: Invocation,
    target: str | None,
    *,
    number: int,
    is_list: bool,
    compare: str | None,
    rows: int,
    perfetto: str | None,
    html: str | None,
    export: str | None,
) -> None:
    """Show where the time of a start went: what read which file, how long it waited, for what, and what to do about it.

    The last start is shown: of what is mounted at MOUNTPOINT, also while it is going on; of image REF on this host; or the one that FILE
    holds. Starts are recorded by themselves, unless with `imagefs mount --no-record`; the last four of each image are kept. docs/explain.md
    says what each line means.
    """
    from imagefs.errors import UsageError

    config = invocation.config()
    if is_list:
        _list(invocation, config, target or "")
        return
    if target is None:
        raise UsageError("nothing to explain: a mountpoint, a ref or a file is missing", hint="`imagefs explain --list` shows what is kept")
    data, found, other_data, other = _analysed(config, target, number, compare)
    if export is not None:
        _write(export, data)
    if perfetto is not None:
        from imagefs_cli.explain.perfetto import trace

        _write(perfetto, trace(found))
    if html is not None:
        _write(html, _page(found, data, other, other_data))
    if invocation.wants_json:
        from imagefs_cli.explain import compare as comparing
        from imagefs_cli.explain import restore
        from imagefs_cli.explain.report import document

        output.print_json(document(found) | restore.document(config, found.start) if other is None else comparing.both(found, other))
    elif export is None and perfetto is None and html is None:
        _show(config, found, other, rows)


def _analysed(config: "Config", target: str, number: int, compare: str | None) -> tuple[bytes, "Analysis", bytes | None, "Analysis | None"]:
    """Return the documents that are meant, and what they tell."""
    from imagefs.errors import NotFoundError
    from imagefs.format.start import decode, plain
    from imagefs_cli.explain import choose
    from imagefs_cli.explain.analysis import analyse

    paths = choose.find(config, target, number)
    data = bytes(plain(choose.read(paths[0])))
    start = decode(data)
    found = analyse(start, _known(config, start))
    if compare is None:
        return data, found, None, None
    others = [path for path in choose.find(config, compare) if path != paths[0] and (compare != target or path in paths)]
    if not others:
        raise NotFoundError(f"there is no other start of {compare} to compare with", hint="`imagefs explain --list` shows what is kept")
    other_data = bytes(plain(choose.read(others[0])))
    return data, found, other_data, analyse(decode(other_data))


def _known(config: "Config", start: "Start") -> "Known":
    """Return what this host knows besides a document."""
    from imagefs.errors import ImageFSError
    from imagefs_cli.explain import choose
    from imagefs_cli.explain.chain import begun, ended
    from imagefs_cli.explain.verdict import Known

    try:
        origin = choose.origin(config, start)
        earlier = choose.earlier(config, start)
    except ImageFSError:
        return Known()  # it is a help, and no reason to tell nothing
    return Known(earlier=earlier, origin_us=None if origin is None else ended(origin) - begun(origin))


def _page(found: "Analysis", data: bytes, other: "Analysis | None", other_data: bytes | None) -> bytes:
    import json
    from importlib import import_module

    def told(analysis: "Analysis", document: bytes) -> dict[str, Any]:
        advice = analysis.verdict
        path = [(step.at_us, step.at_us + step.length_us, step.read) for step in analysis.steps]
        return {**json.loads(document), "sentence": f"{advice.sentence} {advice.gain}".strip(), "path": path}

    page = import_module("imagefs_cli.explain_page").page
    text: str = page(told(found, data), None if other is None or other_data is None else told(other, other_data))
    return text.encode()


def _write(name: str, data: bytes) -> None:
    from imagefs.errors import AccessError

    try:
        Path(name).write_bytes(data)
    except OSError as error:
        raise AccessError(f"cannot write {name}: {error.strerror}") from error


def _show(config: "Config", found: "Analysis", other: "Analysis | None", rows: int) -> None:
    from imagefs_cli.explain import compare, restore, text

    shown = [*text.lines(found, rows), *restore.lines(config, found.start)] if other is None else compare.lines(found, other, rows)
    for line in shown:
        click.echo(output.plain(line))


def _list(invocation: Invocation, config: "Config", target: str) -> None:
    import time

    from imagefs_cli.explain import choose
    from imagefs_cli.explain.verdict import seconds

    found = list(choose.rows(config, target))
    if invocation.wants_json:
        output.print_json(
            [
                {
                    "path": str(item.path),
                    "manifest": item.manifest,
                    "ref": head.ref,
                    "mountpoint": head.mountpoint,
                    "mode": head.mode,
                    "label": head.label,
                    "began": head.began,
                    "seconds": head.seconds,
                    "ended": head.ended,
                    "profiled": head.profile is not None,
                }
                for item, head in found
            ]
        )
        return
    if not found:
        output.say("no start is recorded on this host")
        return
    table = [
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.began // 1000)),
            seconds(1e6 * head.seconds),
            head.ended,
            head.mode,
            "yes" if head.profile is not None else "no",
            head.label or "-",
            head.ref or item.manifest[:12],
            str(item.path),
        ]
        for item, head in found
    ]
    output.table(["BEGAN", "WATCHED", "UNTIL", "MODE", "PROFILE", "LABEL", "IMAGE", "DOCUMENT"], table)
