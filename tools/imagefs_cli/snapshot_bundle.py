"""``imagefs snapshot create`` and ``imagefs snapshot restore``: programs of OCI bundles, whatever they are written in."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_directory, complete_ref
from imagefs_cli.progress import progress_bar

if TYPE_CHECKING:
    from snapshotstore.runner.bundles import Created, Surroundings

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@command("create", short_help="Freeze the program of an OCI bundle.")
@click.argument("bundle", shell_complete=complete_directory)
@click.argument("ref")
@click.option("--when-listening", metavar="PORT", type=click.IntRange(1, 65535), help="Freeze it once it listens on this TCP port.")
@click.option("--when-output", metavar="TEXT", help="Freeze it once it has written a line with this text.")
@click.option("--after", metavar="SECONDS", type=click.FloatRange(min=0), help="Freeze it when it has run so long.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.001), default=60.0, show_default=True, help="For it to be ready.")
@click.option("--engine", type=click.Choice(["auto", "runsc", "criu"]), default="auto", show_default=True, help="What runs and freezes it.")
@click.option("--lineage", metavar="NAME", default="", help="With which snapshots it shares pages (default: those of its own name).")
@click.option("--network", metavar="FILE", help="Its network namespace, as in /run/netns (default: a new one with loopback alone).")
@click.option("--cgroup", metavar="DIR", help="The cgroup to run it in.")
@click.option("--jobs", type=click.IntRange(1, 256), default=None, help="Threads that compress (default: the number of processors).")
@click.option("--recheck", is_flag=True, help="Verify what the store has already, and write again what is damaged.")
def create_command(
    invocation: Invocation,
    bundle: str,
    ref: str,
    when_listening: int | None,
    when_output: str | None,
    after: float | None,
    timeout: float,
    engine: str,
    lineage: str,
    network: str | None,
    cgroup: str | None,
    jobs: int | None,
    recheck: bool,
) -> None:
    """Start the program of the OCI bundle in the directory BUNDLE, freeze it when it is ready, and store it as REF.

    When that is has to be said: with --when-listening, --when-output or --after; of several all have to hold. The bundle's root file system
    is stored as an image of its own. What config.json asks for and a sandbox does not have is refused by name, or told.

    Where `imagefs snapshot verify` has found damage, --recheck heals it, also in the root's image: nothing that the store has is relied on
    then before it was read.

    The program is ended afterwards: `imagefs snapshot restore` starts it where it was frozen, on any host that has the store.
    """
    from imagefs.memory import settle_converter
    from imagefs.store.refs import Ref
    from snapshotstore.runner import bundles
    from snapshotstore.runner.bundles_ready import Ready

    name = Ref.parse(ref)
    ready = Ready(listening=when_listening, output=when_output, after=after)
    given = _surroundings(network, cgroup, None)
    # Ended politely, it cleans up as after Ctrl-C: by default nothing of ours would run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settle_converter()
    with progress_bar(invocation) as progress:
        made = bundles.create(
            invocation.config(),
            Path(bundle),
            name,
            ready,
            engine=engine,
            lineage=lineage,
            timeout=timeout,
            given=given,
            jobs=jobs or len(os.sched_getaffinity(0)),
            recheck=recheck,
            progress=progress,
        )
    if invocation.wants_json:
        output.print_json({**asdict(made), "root": made.root._asdict()})
    else:
        _print(made)


@command("restore", short_help="Restore the program of a bundle, and stay with it.")
@click.argument("ref", shell_complete=complete_ref)
@click.option("--network", metavar="FILE", help="Its network namespace, as in /run/netns (default: a new one with loopback alone).")
@click.option("--cgroup", metavar="DIR", help="The cgroup to run it in.")
@click.option("--output", "target", metavar="FILE", help="What it writes is appended to this file (default: a log of its own).")
@click.option("--detach", is_flag=True, help="Return when it runs, and leave a process that stays with it.")
def restore_command(
    invocation: Invocation, ref: str, network: str | None, cgroup: str | None, target: str | None, detach: bool
) -> int | None:
    """Restore the program that `imagefs snapshot create` froze as REF, and stay until it ends, with its exit code.

    Nothing is needed here but the store: memory, writable layer and root file system arrive while the program is restored. If the snapshot
    does not fit this host, all reasons are told.

    A signal that ends this command (Ctrl-C, SIGTERM) ends the program, and leaves nothing. With --detach that holds for the process that is
    left, whose number is printed.
    """
    given = _surroundings(network, cgroup, target)
    if not detach:
        return _hold(invocation, ref, given, lambda told: _tell(invocation, told))
    _tell(invocation, _in_background(lambda tell: _hold(invocation, ref, given, tell)))
    return None


def _surroundings(network: str | None, cgroup: str | None, target: str | None) -> "Surroundings":
    from imagefs.errors import UsageError
    from snapshotstore.runner.bundles import Surroundings

    # Absolute, without a look at what else the path means: an engine works in directories of its own.
    paths = [None if path is None else Path(path).absolute() for path in (network, cgroup, target)]
    if paths[0] is not None and not paths[0].exists():
        raise UsageError(f"there is no network namespace {paths[0]}", hint="`ip netns add NAME` makes one, as /run/netns/NAME")
    if paths[1] is not None and not (paths[1] / "cgroup.procs").exists():
        raise UsageError(f"{paths[1]} is no cgroup", hint="a directory below /sys/fs/cgroup")
    if paths[2] is not None and (paths[2].is_dir() or not paths[2].parent.is_dir()):
        raise UsageError(f"nothing can be appended to {paths[2]}")
    return Surroundings(network=paths[0], cgroup=paths[1], output=paths[2])


# -- a program that runs ------------------------------------------------------------------------------------------------------------------


class _ToldToEndError(BaseException):
    """A signal, wherever this process is."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _hold(invocation: Invocation, ref: str, given: "Surroundings", tell: Callable[[dict[str, Any]], object]) -> int:
    """Restore a program, ``tell`` of it, and wait for its end or a signal; return the exit code."""
    from snapshotstore.runner import bundles

    for number in _SIGNALS:
        # What is ignored stays so: nohup(1) is meant for programs like this.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _told_to_end)
    try:
        running = bundles.restore(invocation.config(), ref, given=given)
        try:
            tell(
                {
                    "ref": running.ref,
                    "snapshot": running.snapshot,
                    "engine": running.engine,
                    "pid": os.getpid(),
                    "output": str(running.output),
                    "timeline": running.timeline,
                    "notes": running.notes,
                }
            )
            return running.wait()
        finally:
            # Nothing is left, whoever is in a hurry.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            for note in running.close():
                output.say(f"imagefs: {note}")
    except _ToldToEndError as told:
        return 128 + told.number


def _told_to_end(number: int, _: object) -> NoReturn:
    raise _ToldToEndError(number)


def _in_background(run: Callable[[Callable[[dict[str, Any]], object]], int]) -> dict[str, Any]:
    """Have a process of its own ``run``; return what that tells, or raise what it raises. It stays when this process ends."""
    from imagefs.daemon.wire import rebuilt
    from imagefs.errors import DaemonError

    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    # Before anything has a thread.
    child = os.fork()
    if not child:
        os.close(reader)
        _be_background(run, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        try:
            told = pipe.read()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
            raise
    if not told:
        raise DaemonError("the process that restores it was ended")
    document: dict[str, Any] = json.loads(told)
    if "error" in document:
        raise rebuilt(document["error"])
    return document


def _be_background(run: Callable[[Callable[[dict[str, Any]], object]], int], writer: int) -> NoReturn:
    from imagefs.errors import ImageFSError

    def tell(document: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(document).encode())

    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        os.chdir("/")
        code = run(tell)
    except ImageFSError as error:
        tell({"error": {"type": type(error).__name__, "message": error.message, "hint": error.hint}})
    finally:
        os._exit(code)


# -- what is printed ----------------------------------------------------------------------------------------------------------------------


def _tell(invocation: Invocation, told: dict[str, Any]) -> None:
    if invocation.wants_json:
        output.print_json(told)
    else:
        output.say(f"{told['ref']} runs again, by {told['engine']}: {_seconds(told['timeline'])}")
        output.say(f"  process {told['pid']} stays with it; what it writes is in {told['output']}")
        _notes(told["notes"])
    # Whoever reads it need not wait for the program's end.
    sys.stdout.flush()


def _print(made: "Created") -> None:
    push = made.push
    output.pairs(
        [
            ("snapshot", made.ref),
            ("digest", made.snapshot),
            ("engine", made.engine),
            ("root", f"{made.root.ref}, {output.size(made.root.new_bytes)} new"),
            (
                "memory",
                f"{output.size(push.memory_bytes)}, of which {output.size(push.zero_bytes)} zeros, {output.size(push.known_bytes)} known",
            ),
            ("stored", f"{output.size(push.new_bytes)} new"),
            *([("healed", f"{made.healed:,} that were damaged in the store")] if made.healed else []),
            ("seconds", _seconds(made.timeline)),
        ]
    )
    _notes(made.notes)


def _seconds(timeline: dict[str, float]) -> str:
    return ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in timeline.items()) + " s"


def _notes(notes: "list[str] | tuple[str, ...]") -> None:
    for note in notes:
        output.say(f"  {note}")
