"""``imagefs optimize``."""

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_ref
from imagefs_cli.progress import converting

if TYPE_CHECKING:
    from imagefs.convert.optimize import OptimizeReport


@command("optimize", short_help="Lay an image out in the order in which it starts.")
@click.argument("ref", shell_complete=complete_ref)
@click.option("--to", metavar="REF", help="Name the optimized image so, and leave REF as it is.")
@click.option("--label", metavar="LABEL", help="By the starts with this label alone (default: by all that were recorded).")
def optimize_command(invocation: Invocation, ref: str, to: str | None, label: str | None) -> None:
    """Lay image REF out in the order in which its starts need it, as its profile says.

    What a quarter of the recorded starts need is written into packs of its own, in the order of need, so that a start is a few large GETs.
    Content and tree stay as they are (`imagefs diff` shows none), and so does the image that was there: what is mounted stays mounted, and
    both may be used side by side. REF names the optimized image afterwards.

    Says how many GETs and bytes a start is expected to be. With an unchanged profile it changes nothing.
    """
    from imagefs.convert.optimize import optimize
    from imagefs.format.profile import Key
    from imagefs.store.profiles import fetch, publish
    from imagefs.store.refs import Ref

    target = None if to is None else Ref.parse(to)
    key = None if label is None else Key.of(label=label)
    with converting(invocation) as progress, contextlib.closing(invocation.store()) as store:
        report = optimize(
            store,
            ref,
            lambda manifest: fetch(store, manifest, key),
            keep=lambda profile: publish(store, profile, always=True),
            to=target,
            progress=progress,
        )
    if invocation.wants_json:
        output.print_json(document(report))
    else:
        _print(report)


def document(report: "OptimizeReport") -> dict[str, object]:
    """Return a report as JSON has it."""
    found = asdict(report)
    for name in ("before", "after"):
        start = getattr(report, name)
        found[name] = {"gets": start.gets, "bytes": start.stored}
    return found


def _print(report: "OptimizeReport") -> None:
    if not report.changed:
        output.say(f"{report.ref} is as its profile wants it: nothing was changed")
    output.pairs(
        [
            ("image", report.ref),
            ("digest", report.manifest),
            ("made from", report.origin),
            ("profile", f"{report.starts} starts, {report.used:,} of {report.accesses:,} accesses{_left_out(report)}"),
            ("a start was", f"{report.before.gets:,} GETs, {output.size(report.before.stored)}"),
            ("a start is", f"{report.after.gets:,} GETs, {output.size(report.after.stored)}"),
            ("stored", f"{output.size(report.new_bytes)} new, in {report.packs_new} packs"),
            ("seconds", f"{sum(report.seconds.values()):.1f}"),
        ]
    )


def _left_out(report: "OptimizeReport") -> str:
    parts = [
        *([f"{report.rare:,} of fewer than a quarter of them"] if report.rare else []),
        *([f"{report.foreign:,} of other content"] if report.foreign else []),
    ]
    return f" ({', '.join(parts)})" if parts else ""
