"""What ``imagefs snapshot run`` does, however its command line was read: by click or by ``imagefs_cli.lean``.

On the way of every restored answer: imports what calls the service, and nothing else that takes long to load.
"""

import json

from imagefs.errors import ProgramError, UsageError
from imagefs_cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from imagefs_cli.invocation import Invocation
    from snapshotstore.runner.runner import Answer


def run(
    invocation: "Invocation",
    target: str,
    options: "dict[str, Any]",
    *,
    timeout: float = 600.0,
    network: "Path | None" = None,
    cgroup: "Path | None" = None,
) -> None:
    """Call a method of the service ``target``, and print its answer; ``options`` are those of ``declared.RUN``, by name."""
    import os
    from pathlib import Path

    from snapshotstore.runner.entry import find
    from snapshotstore.runner.runner import Runner

    os.umask(0o077)  # what is frozen is a core dump: a directory store keeps it for its owner alone
    args, named = _arguments(options["arguments"])
    entry = find(target, Path(options["source"]).resolve())
    runner = Runner(
        invocation.config(),
        engine=options["engine"],
        snapshots=not options["no_snapshot"],
        fresh=options["fresh"],
        image=options["image"],
    )
    try:
        answer = runner.call(entry, options["method"], args, named, timeout=timeout, network=network, cgroup=cgroup)
        _print(invocation, answer)
    except ProgramError as error:
        output.say(error.traceback.rstrip())
        raise
    finally:
        for note in runner.close():
            output.say(f"imagefs: {note}")


def _arguments(text: str) -> "tuple[list[Any], dict[str, Any]]":
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--args is no JSON: {error}", hint="--args '[1, 2]', or --args '{\"name\": 1}'") from None
    if isinstance(found, dict):
        return [], found
    if isinstance(found, list):
        return found, {}
    raise UsageError("--args is neither a list nor an object", hint="one argument is a list, too: --args '[1]'")


def _print(invocation: "Invocation", answer: "Answer") -> None:
    """Print an answer at once: whoever waits for it need not wait for what comes after it."""
    if invocation.wants_json:
        from dataclasses import asdict

        output.print_json(asdict(answer))
        return
    output.line(json.dumps(answer.result))
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in answer.timeline.items())
    output.say(f"{answer.started} with {answer.engine}: {seconds}")
    if answer.reason:
        output.say(f"  not restored: {answer.reason}")
    for note in answer.notes:
        output.say(f"  {note}")
