"""Who answers on the control socket while there is no worker: short, and without what only a worker knows.

One request at a time, each within a second: whoever supervises must not be held up. ``stop`` and ``reload`` work, ``status`` says what is
wrong, everything else is refused with the reason.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from imagefs import __version__
from imagefs.daemon.instance import TABLE_NAME, Role
from imagefs.daemon.wire import described
from imagefs.errors import DaemonError, UsageError
from imagefs.mount.table import MountTable

_SECONDS: Final = 1.0
_LINE_MAX: Final = 64 << 10


def answer_one(listener: socket.socket, status: Mapping[str, Any], actions: Mapping[str, Callable[[], object]]) -> None:
    """Take a connection from ``listener``, and answer it. What is asked for of ``actions`` is called when its caller has been told."""
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(_SECONDS)
            op = _asked(connection)
            if op:
                connection.sendall(json.dumps(_answer(op, status)).encode() + b"\n")
            if op in actions:
                actions[op]()


def status(role: Role, started_at: float, restarts: int, crash: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a worker's status would say, as far as it is known without one."""
    table = MountTable(role.directory / TABLE_NAME)
    mounts = [{"mountpoint": record.mountpoint, "ref": record.ref, "manifest": record.manifest, "mode": record.mode} for record in table]
    return {
        "pid": os.getpid(),
        "worker_pid": None,
        "worker_restarts": restarts,
        "crash": crash,
        "version": __version__,
        "store": role.config.store,
        "cache": str(role.config.cache),
        "directory": str(role.directory),
        "auto_stop": role.auto_stop,
        "started_at": started_at,
        "rss_bytes": 0,
        "mounts": mounts,
    }


def _asked(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_MAX:
        more = connection.recv(_LINE_MAX)
        if not more:
            return ""
        line += more
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(line)["op"])
    return "?"


def _answer(op: str, status: Mapping[str, Any]) -> dict[str, Any]:
    match op:
        case "ping" | "status" | "reload":
            return {"ok": True, "result": status}
        case "stop":
            return {"ok": True, "result": {"pid": status["pid"], "mounts": len(status["mounts"])}}
        case "?":
            return {"ok": False, "error": described(UsageError("not a request"))}
    how = status["crash"]["how"] if status["crash"] else "it could not be started"
    problem = DaemonError(
        f"the daemon's worker keeps ending, and is not started again for a moment: {how}", hint="`imagefs daemon status` tells more"
    )
    return {"ok": False, "error": described(problem)}
