"""The process that ``python -m imagefs.daemon`` becomes after its fork: arguments in, readiness out on a descriptor."""

import contextlib
import json
import os
import sys

from imagefs.daemon.instance import Role
from imagefs.daemon.supervisor import run_daemon
from imagefs.daemon.wire import described, known


def run_background(arguments: list[str]) -> int:
    """Run the daemon described by one JSON argument (see ``client.spawn``); return its exit code."""
    told = json.loads(arguments[0])
    ready_fd: int | None = told["ready_fd"]

    def tell(answer: dict[str, object]) -> None:
        nonlocal ready_fd
        if ready_fd is not None:
            # A starter that does not wait any more needs no answer.
            with contextlib.suppress(OSError):
                os.write(ready_fd, json.dumps(answer).encode() + b"\n")
            os.close(ready_fd)
            ready_fd = None

    try:
        run_daemon(Role.of(told), lambda: tell({"ok": True, "result": {"pid": os.getpid()}}))
    except Exception as error:  # whatever it is, the starter is told
        if ready_fd is None:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            raise
        tell({"ok": False, "error": described(error)})
        return known(error).exit_code
    return 0
