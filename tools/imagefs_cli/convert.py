"""``imagefs convert``."""

import contextlib
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_source
from imagefs_cli.progress import converting

if TYPE_CHECKING:
    from imagefs.convert.convert import ConvertReport


@command("convert", short_help="Convert a container image into the store.")
@click.argument("source", shell_complete=complete_source)
@click.argument("ref")
@click.option("--jobs", type=click.IntRange(1, 256), default=None, help="Threads that compress (default: the number of processors).")
@click.option(
    "--level", type=click.IntRange(1, 19), default=3, show_default=True, help="The zstd level of new packs; part of an image's identity."
)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Which image of a multi-platform index (default: this machine's).")
def convert_command(invocation: Invocation, source: str, ref: str, jobs: int | None, level: int, platform: str | None) -> None:
    """Convert SOURCE into the store and name it REF.

    SOURCE is oci-archive:FILE[:TAG], oci:DIR[:TAG], docker-archive:FILE[:NAME], dir:DIR, or a path, which is looked into.
    REF is NAME[:TAG].

    A store that does not exist yet is made. Converting the same source again gives the same digest and stores nothing twice.
    """
    from imagefs.convert.convert import convert
    from imagefs.store.refs import Ref

    name = Ref.parse(ref)
    jobs = jobs or len(os.sched_getaffinity(0))
    with converting(invocation) as progress, contextlib.closing(invocation.store(create=True)) as store:
        report = convert(source, name, store, jobs=jobs, level=level, platform=platform, progress=progress)
    if invocation.wants_json:
        output.print_json(asdict(report))
    else:
        _print(report)


def _print(report: "ConvertReport") -> None:
    total = report.new_bytes + report.shared_bytes
    output.say(f"chose {report.described}")
    output.pairs(
        [
            ("image", report.ref),
            ("digest", report.manifest),
            ("files", f"{report.files:,} of {output.size(report.bytes_logical)}"),
            ("read", output.size(report.bytes_in) + _layers(report)),
            ("stored", f"{output.size(report.new_bytes)} new, {output.size(report.shared_bytes)} of {output.size(total)} was there"),
            ("index", f"{output.size(report.tree_bytes + report.map_bytes)}"),
            ("seconds", f"{sum(v for k, v in report.seconds.items() if '.' not in k):.1f}"),
        ]
    )


def _layers(report: "ConvertReport") -> str:
    if not report.layers:
        return ""
    known = f", {report.layers_known} of which the store knew" if report.layers_known else ""
    return f" in {report.layers} layers{known}"
