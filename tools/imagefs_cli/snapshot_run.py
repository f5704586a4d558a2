"""``imagefs snapshot run``, as click reads it. What it does is in ``imagefs_cli.snapshot_call``."""

from pathlib import Path
from typing import Any

import click

from imagefs_cli import declared, snapshot_call
from imagefs_cli.options import Invocation, command


@command("run", options=declared.RUN, short_help="Call a method of a service, restored from a snapshot where one fits.")
@click.argument("target", metavar="MODULE:CLASS")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.001), default=600.0, show_default=True, help="For the answer.")
@click.option("--network", metavar="FILE", type=click.Path(path_type=Path, exists=True), help="Its network namespace, as in /run/netns.")
@click.option("--cgroup", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False), help="The cgroup to run it in.")
def run_command(invocation: Invocation, target: str, timeout: float, network: Path | None, cgroup: Path | None, **options: Any) -> None:
    """Call METHOD of the service MODULE:CLASS, and print its answer as JSON.

    The service is a class with `@app.cls(image=...)` (see docs/snapshots.md). Where the store has a snapshot of it that fits this host, it
    is restored; else it starts cold, is frozen when it could answer, answers, and is published for the next start. Whatever prevents a
    restore is said, and the answer comes all the same.

    What the program prints is in a log of its own, which `--json` names.
    """
    snapshot_call.run(invocation, target, options, timeout=timeout, network=network, cgroup=cgroup)
