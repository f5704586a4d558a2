"""The OCI ``config.json`` of a sandbox, for engines that take one. Pure: no I/O, the same bytes for equal sandboxes.

Promises: the program has no capability and can get none; nothing of the host is seen but the root and the binds, which are read-only unless
they are writable, and have no devices and no set-user-id. :func:`identity` is equal for exactly the sandboxes in which a program may be
restored that was frozen in one of them.

What does not live here: how an engine is told of the rest of a sandbox (its network, cgroup, state and output), and whether it obeys.
"""

import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any, Final

from imagefs.digest import digest_of
from imagefs.errors import UsageError
from snapshotstore.checkpoint.base import Bind, Sandbox

_VERSION: Final = "1.0.2"  # of the runtime specification: nothing newer is used, and the oldest engine that is supported reads it
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_CAPABILITY_SETS: Final = ("ambient", "bounding", "effective", "inheritable", "permitted")
_NAMESPACES: Final = ("ipc", "mount", "pid", "uts")
_OWN: Final = (
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "mode=755"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "nodev", "mode=1777"]},  # noqa: S108
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
)
"""What is mounted on the root before the binds. All of it is the sandbox's own, and part of what is frozen. ``/tmp`` is the image's."""


def config(sandbox: Sandbox) -> dict[str, Any]:
    """Make the document. ``UsageError`` for a sandbox that cannot be told in one."""
    _check(sandbox)
    network = {"type": "network"} if sandbox.network is None else {"type": "network", "path": str(sandbox.network)}
    return {
        "ociVersion": _VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": sandbox.uid, "gid": sandbox.gid, "additionalGids": []},
            "args": list(sandbox.argv),
            # In one order, whatever the caller's: it is the order in the program's memory.
            "env": [f"{name}={value}" for name, value in sorted(sandbox.environment.items())],
            "cwd": sandbox.cwd,
            "capabilities": {kind: [] for kind in _CAPABILITY_SETS},
            "noNewPrivileges": True,
        },
        "root": {"path": str(sandbox.root), "readonly": False},  # what is written goes elsewhere: base.py
        "hostname": sandbox.hostname,
        "mounts": [*(dict(mount) for mount in _OWN), *map(_bind, sandbox.binds)],
        "linux": {"namespaces": [*({"type": kind} for kind in _NAMESPACES), network]},
    }


def encode(document: Mapping[str, Any]) -> bytes:
    """Write a document in its one spelling."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogateescape")


def identity(sandbox: Sandbox) -> dict[str, str]:
    """Return the digest, in hex, of each part of a sandbox that has to be equal where its program is restored.

    Digests, so that what is in an environment is not told once more.
    """
    document = config(sandbox)
    process = document.pop("process")
    parts = {
        "argv": process.pop("args"),
        "environment": process.pop("env"),
        "cwd": process.pop("cwd"),
        "user": process.pop("user"),
        "hostname": document.pop("hostname"),
        "binds": [{**mount, "source": ""} for mount in document.pop("mounts")[len(_OWN) :]],
        "privileges and own mounts": [_VERSION, process, _OWN],
    }
    return {name: digest_of(encode({name: part})).hex() for name, part in parts.items()}


def differences(known: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return the names of the parts that are not equal in two identities."""
    return sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))


def place_of(bind: Bind) -> str:
    """Return where a bind is seen, without detours."""
    return posixpath.normpath(posixpath.join("/", bind.target))


def _bind(bind: Bind) -> dict[str, Any]:
    options = ["rbind", "nosuid", "nodev", "rw" if bind.writable else "ro"]
    return {"destination": place_of(bind), "type": "bind", "source": str(bind.source), "options": options}


def _check(sandbox: Sandbox) -> None:
    if not _NAME.fullmatch(sandbox.name):
        raise UsageError(f"not a sandbox's name: {sandbox.name[:80]!r}", hint="lower-case letters, digits and hyphens, 64 at most")
    if not sandbox.argv:
        raise UsageError(f"{sandbox.name} has no program to run")
    for path in (sandbox.root, sandbox.state, sandbox.output, *(bind.source for bind in sandbox.binds)):
        if not path.is_absolute():
            raise UsageError(f"{sandbox.name}: not an absolute path: {path}")
    for bind in sandbox.binds:
        if ".." in bind.target.split("/") or place_of(bind) == "/":
            raise UsageError(f"{sandbox.name}: nothing can be bound at {bind.target!r}")
    for name in sandbox.environment:
        if not name or "=" in name:
            raise UsageError(f"{sandbox.name}: not a name in an environment: {name!r}")
