"""``imagefs snapshot doctor``: what this host could restore, found out by trying."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from imagefs_cli import output
from imagefs_cli.doctor import Finding
from imagefs_cli.options import Invocation, command

if TYPE_CHECKING:
    from imagefs.errors import ImageFSError
    from snapshotstore.checkpoint.base import Engine
    from snapshotstore.compat import Host

_CGROUP: Final = Path("/sys/fs/cgroup")
_CONTROLLERS: Final = ("cpu", "memory", "pids")

_WHERE: Final = {
    "criu": "4.1 or newer is in Debian 13 (apt-get install criu); Linux 6.16 and newer want 4.2",
    "runsc": "2024 or newer is in Debian 13 (apt-get install runsc); or https://gvisor.dev/docs/user_guide/install: it is one program",
}
"""The engines, which are also the names of their programs, and where those are to be had."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found of an engine: ``engine``, or why there is none that works."""

    name: str
    engine: "Engine | None"
    problem: "ImageFSError | None" = None


@command("doctor", short_help="Check what this host can restore.")
def doctor_command(invocation: Invocation) -> int:
    """Check what this host can restore: its engines, which are tried, its CPU, its kernel, what this user may do; and how to get the rest.

    Ends with exit code 1 if no engine works here.
    """
    from snapshotstore import compat

    with ThreadPoolExecutor(len(_WHERE), thread_name_prefix="engines") as pool:
        looked = list(pool.map(_look, _WHERE))
    here = compat.collect([one.engine for one in looked if one.engine is not None])
    findings = [*(_engine(one) for one in looked), *_host(here)]
    if invocation.wants_json:
        output.print_json({"ok": bool(here.engines), "findings": [asdict(found) for found in findings], "host": _document(here)})
    else:
        for found in findings:
            click.echo(output.plain(f"{found.state:4}  {found.name:18}  {found.detail}"))
            if found.fix and found.state != "ok":
                click.echo(output.plain(f"{'':26}{found.fix}"))
    return 0 if here.engines else 1


def _look(name: str) -> Looked:
    """Find a program on ``PATH``, and have it show that it works."""
    from imagefs.errors import ImageFSError, UnsupportedError
    from snapshotstore.checkpoint.criu import Criu
    from snapshotstore.checkpoint.runsc import Runsc

    path = shutil.which(name)
    if path is None:
        return Looked(name, None, UnsupportedError(f"there is no {name} on PATH", hint=_WHERE[name]))
    try:
        return Looked(name, (Criu if name == "criu" else Runsc)(Path(path).resolve()).probe())
    except ImageFSError as error:
        return Looked(name, None, error)


def _engine(looked: Looked) -> Finding:
    if looked.engine is None:
        assert looked.problem is not None  # one of the two is there
        return Finding(looked.name, "warn", looked.problem.message, looked.problem.hint or _WHERE[looked.name])
    engine = looked.engine
    only = "restores what this version made" if engine.is_exact else "restores what other versions made, too"
    features = f"; {', '.join(sorted(engine.features))}" if engine.features else ""
    return Finding(looked.name, "ok", f"{engine.version} at {engine.program}: format {engine.format}, {only}{features}")


def _host(here: "Host") -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("root", "ok", "programs are frozen and restored by root, and run as another user")
    else:
        yield Finding("root", "warn", "this user is not root: no engine runs programs for it", "run as root")
    yield _any_user()
    yield _cgroup()
    yield Finding("kernel", "ok", f"Linux {here.kernel}: snapshots of another kernel are restored with a warning")
    size = f"registers of {here.xsave} bytes" if here.xsave else "registers of unknown size (Linux before 5.14)"
    cpu = f"{here.arch} {here.vendor}, {len(here.features)} features, {size}, pages of {here.page_size} bytes"
    yield Finding("cpu", "ok", cpu)
    yield Finding("gpu", "ok", "none is used: snapshots with GPU memory are not restored here")


def _any_user() -> Finding:
    from snapshotstore.checkpoint.criu_refusals import may_freeze_any_user

    if may_freeze_any_user():
        return Finding("CAP_SYS_RESOURCE", "ok", "held: CRIU freezes programs of any user")
    fix = "give this container the capability, or use runsc"
    return Finding("CAP_SYS_RESOURCE", "warn", "not held: CRIU freezes programs of root alone", fix)


def _cgroup() -> Finding:
    """Look whether limits can be set: in the unified hierarchy, wherever it is mounted."""
    for root in (_CGROUP, _CGROUP / "unified"):
        try:
            controllers = (root / "cgroup.controllers").read_text().split()
        except OSError:
            continue
        lacking = [name for name in _CONTROLLERS if name not in controllers]
        if lacking:
            return Finding("cgroup", "warn", f"{root} has no {', '.join(lacking)}: those limits are not set", "delegate the controllers")
        if not os.access(root, os.W_OK):
            return Finding("cgroup", "warn", f"{root} cannot be written: no limits are set", "mount it read-write")
        return Finding("cgroup", "ok", f"{root}: {', '.join(controllers)}")
    return Finding("cgroup", "warn", "there is no cgroup v2 hierarchy: no limits are set", "mount -t cgroup2 none /sys/fs/cgroup")


def _document(here: "Host") -> dict[str, Any]:
    return {
        "arch": here.arch,
        "vendor": here.vendor,
        "features": sorted(here.features),
        "xsave": here.xsave,
        "page_size": here.page_size,
        "kernel": here.kernel,
        "engines": [
            {
                "name": engine.name,
                "version": engine.version,
                "format": engine.format,
                "program": str(engine.program),
                "exact": engine.is_exact,
                "features": sorted(engine.features),
            }
            for engine in here.engines
        ],
        "gpu": None,
    }
