"""What commands have in common that run for long: a bar on standard error while a person is watching, and how they are ended."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from imagefs_cli import output
from imagefs_cli.options import Invocation

if TYPE_CHECKING:
    from imagefs.convert.stages import Progress


@contextlib.contextmanager
def converting(invocation: Invocation) -> "Iterator[Callable[[Progress], None] | None]":
    """Settle this process for reading and compressing very much, which is all that it does, and show how far it is.

    Ended politely, it cleans up as after Ctrl-C: by default nothing of ours would run.
    """
    import signal

    from imagefs.memory import settle_converter

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settle_converter()
    with progress_bar(invocation) as progress:
        yield progress


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
