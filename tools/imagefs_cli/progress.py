"""A bar on standard error while something long runs and a person is watching."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from imagefs_cli import output
from imagefs_cli.options import Invocation

if TYPE_CHECKING:
    from imagefs.convert.stages import Progress


@contextlib.contextmanager
def progress_bar(invocation: Invocation) -> "Iterator[Callable[[Progress], None] | None]":
    """Show a bar while a person is watching; cost nothing otherwise."""
    if invocation.wants_json or not output.on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("read", total=None)

        def show(progress: "Progress") -> None:
            bar.update(task, description=progress.stage, completed=progress.done, total=progress.total or None)

        yield show
