"""What ``imagefs top`` is told: who has read how much of which image, from which tier, since somebody looks."""

import os
from dataclasses import asdict
from typing import Any

from imagefs.daemon.metrics import Sources, mounts
from imagefs.errors import DaemonError


def looked(sources: Sources) -> dict[str, Any]:
    """Return ``{worker_pid, seconds, mounts, programs}``; ask again within ``readers.WATCH_SECONDS`` to go on.

    ``programs`` are rows of ``{manifest, mountpoints, cgroup, command, pid, bytes_read}``: of an image that is mounted several times
    it is not known through which of its mounts. Bytes are sums since ``seconds`` ago, and begin anew with another ``worker_pid``.
    """
    if sources.readers is None:
        raise DaemonError("this daemon does not know who reads")
    seconds, rows = sources.readers.look()
    programs = [
        {
            "manifest": image,
            "mountpoints": [record.mountpoint for record in sources.table.of_image(image)],
            "cgroup": program.cgroup,
            "command": program.command,
            "pid": row.pid,
            "bytes_read": asdict(row.tally),
        }
        for image, program, row in rows
    ]
    return {"worker_pid": os.getpid(), "seconds": seconds, "mounts": mounts(sources), "programs": programs}
