"""The process that ``python -m imagefs.daemon`` becomes after its fork: arguments in, readiness out on a descriptor.

``python -m imagefs.daemon.background`` is what it becomes when it begins anew, without a fork and with nobody who waits.
"""

import contextlib
import json
import os
import sys
from dataclasses import replace

from imagefs.config import manager_settings
from imagefs.daemon.instance import Role
from imagefs.daemon.notify import ServiceManager
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
        # What told its starter things was not meant for it; only what it has kept itself for its next life.
        manager = ServiceManager(replace(manager_settings(), notify="", watchdog=0.0))
        again = (sys.executable, "-P", "-m", "imagefs.daemon.background", json.dumps(told | {"ready_fd": None}))
        run_daemon(Role.of(told), lambda: tell({"ok": True, "result": {"pid": os.getpid()}}), manager=manager, again=again)
    except Exception as error:  # whatever it is, the starter is told
        if ready_fd is None:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            raise
        tell({"ok": False, "error": described(error)})
        return known(error).exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run_background(sys.argv[1:]))
