"""``imagefs logs``."""

import contextlib
import time
from pathlib import Path

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command


@command("logs", short_help="Show what replicas of services have printed.")
@click.argument("name", required=False)
@click.option("--lines", metavar="N", type=click.IntRange(min=1), help="The last N lines alone (default: all).")
def logs_command(invocation: Invocation, name: str | None, lines: int | None) -> None:
    """Show what the replica NAME has printed, on standard output and standard error; without NAME, list the logs, the newest first.

    NAME is a log's name or its beginning, such as an app's: the newest that begins so is shown. A replica that printed nothing leaves none.
    """
    from imagefs.errors import NotFoundError
    from snapshotstore.runner.workplace import logs_of

    found = logs_of(invocation.config().runtime)
    if name is None:
        _list(invocation, found)
        return
    path = next((path for path in found if path.name.startswith(name)), None)
    try:
        text = None if path is None else path.read_text(errors="replace")
    except FileNotFoundError:
        # Its replica has ended meanwhile, and printed nothing; or it was one of the oldest.
        text = None
    if text is None:
        raise NotFoundError(f"there is no log {name}", hint="`imagefs logs` lists those that there are")
    if lines is not None:
        text = "".join(text.splitlines(keepends=True)[-lines:])
    if invocation.wants_json:
        output.print_json({"log": str(path), "text": text})
    else:
        click.echo(output.plain(text), nl=False)


def _list(invocation: Invocation, found: list[Path]) -> None:
    rows = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            rows.append((path, path.stat()))
    if invocation.wants_json:
        output.print_json({"logs": [{"log": str(path), "bytes": stat.st_size, "time": stat.st_mtime} for path, stat in rows]})
    elif rows:
        now = time.time()
        shown = [[path.name.removesuffix(".log"), output.age(now - stat.st_mtime), output.size(stat.st_size)] for path, stat in rows]
        output.table(["LOG", "AGE", "SIZE"], shown)
    else:
        output.say("there are no logs: no replica has printed anything on this host")
