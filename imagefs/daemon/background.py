"""The process that ``python -m imagefs.daemon`` becomes after its fork: arguments in, readiness out on a descriptor."""

import json
import os
import sys
from pathlib import Path

from imagefs.config import Config
from imagefs.daemon.requests import failure, success
from imagefs.daemon.worker import Role, describe_failure, run_daemon


def run_background(arguments: list[str]) -> int:
    """Run the daemon described by one JSON argument (see ``client.spawn``); return its exit code."""
    told = json.loads(arguments[0])
    settings = told["config"]
    config = Config(**{**settings, "cache": Path(settings["cache"]), "runtime": Path(settings["runtime"])})
    mountpoint = Path(told["mountpoint"]) if told["mountpoint"] else None
    ready_fd: int | None = told["ready_fd"]

    def tell(line: bytes) -> None:
        nonlocal ready_fd
        if ready_fd is not None:
            os.write(ready_fd, line)
            os.close(ready_fd)
            ready_fd = None

    try:
        run_daemon(Role(config, mountpoint, auto_stop=told["auto_stop"]), lambda: tell(success({"pid": os.getpid()})))
    except Exception as error:  # whatever it is, the starter is told
        if ready_fd is None:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            raise
        found = describe_failure(error)
        tell(failure(found))
        return found.exit_code
    return 0
