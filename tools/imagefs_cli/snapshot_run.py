"""``imagefs snapshot run``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command

if TYPE_CHECKING:
    from snapshotstore.runner.runner import Answer


@command("run", short_help="Call a method of a service, restored from a snapshot where one fits.")
@click.argument("target", metavar="MODULE:CLASS")
@click.option("--call", "method", metavar="METHOD", required=True, help="The method to call.")
@click.option(
    "--args", "arguments", metavar="JSON", default="[]", show_default=True, help="A list of arguments, or an object of named ones."
)
@click.option(
    "--source",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    help="The directory that the module is imported from (default: this one).",
)
@click.option("--image", metavar="REF", help="Run it in this image (default: the one that its decorator names).")
@click.option("--engine", type=click.Choice(["auto", "runsc", "criu"]), default="auto", show_default=True, help="What runs and freezes it.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.001), default=600.0, show_default=True, help="For the answer.")
@click.option("--no-snapshot", is_flag=True, help="Start it cold, and make no snapshot.")
@click.option("--fresh", is_flag=True, help="Start it cold, and make a new snapshot in place of the one that there may be.")
@click.option("--network", metavar="FILE", type=click.Path(path_type=Path, exists=True), help="Its network namespace, as in /run/netns.")
@click.option("--cgroup", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False), help="The cgroup to run it in.")
def run_command(
    invocation: Invocation,
    target: str,
    method: str,
    arguments: str,
    source: Path,
    image: str | None,
    engine: str,
    timeout: float,
    no_snapshot: bool,
    fresh: bool,
    network: Path | None,
    cgroup: Path | None,
) -> None:
    """Call METHOD of the service MODULE:CLASS, and print its answer as JSON.

    The service is a class with `@app.cls(image=...)` (see docs/snapshots.md). Where the store has a snapshot of it that fits this host, it
    is restored; else it starts cold, is frozen when it could answer, answers, and is published for the next start. Whatever prevents a
    restore is said, and the answer comes all the same.

    What the program prints is in a log of its own, which `--json` names.
    """
    import os

    from imagefs.errors import ProgramError
    from snapshotstore.runner.entry import find
    from snapshotstore.runner.runner import Runner

    os.umask(0o077)  # what is frozen is a core dump: a directory store keeps it for its owner alone
    args, named = _arguments(arguments)
    entry = find(target, source.resolve())
    runner = Runner(invocation.config(), engine=engine, snapshots=not no_snapshot, fresh=fresh, image=image)
    try:
        answer = runner.call(entry, method, args, named, timeout=timeout, network=network, cgroup=cgroup)
        _print(invocation, answer)
    except ProgramError as error:
        output.say(error.traceback.rstrip())
        raise
    finally:
        for note in runner.close():
            output.say(f"imagefs: {note}")


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    import json

    from imagefs.errors import UsageError

    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--args is no JSON: {error}", hint="--args '[1, 2]', or --args '{\"name\": 1}'") from None
    if isinstance(found, dict):
        return [], found
    if isinstance(found, list):
        return found, {}
    raise UsageError("--args is neither a list nor an object", hint="one argument is a list, too: --args '[1]'")


def _print(invocation: Invocation, answer: "Answer") -> None:
    import json
    import sys

    if invocation.wants_json:
        output.print_json(asdict(answer))
    else:
        click.echo(json.dumps(answer.result))
        seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in answer.timeline.items())
        output.say(f"{answer.started} with {answer.engine}: {seconds}")
        if answer.reason:
            output.say(f"  not restored: {answer.reason}")
        for note in answer.notes:
            output.say(f"  {note}")
    # Whoever waits for the answer need not wait for what comes after it.
    sys.stdout.flush()
