"""``imagefs doctor``: what this host can do, found out by trying where trying does no harm."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_file

_CAP_SYS_ADMIN: Final = 21


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``state`` is ok, warn or fail; ``fix`` says how to get what is missing."""

    name: str
    state: str
    detail: str
    fix: str | None = None


@command("doctor", short_help="Check what this host can do.")
@click.option("--report", metavar="FILE", shell_complete=complete_file, help="Write a bundle for a bug report to a new file, as .tar.gz.")
def doctor_command(invocation: Invocation, report: str | None) -> int:
    """Check what this host can do: kernel features, packages, permissions, directories and the store.

    Ends with exit code 1 if something that this version needs is missing. What a later kernel would give is a warning.

    With --report: also gather what helps to find a fault, without secrets: versions, settings, mounts, what the daemons say of themselves
    and count, the ends of their logs, the kernel's messages. Look into it before you send it.
    """
    findings = list(examine(invocation))
    if report is not None:
        from imagefs_cli.report import write_report

        write_report(Path(report), invocation, findings)
        output.say(f"imagefs: the report is {report}; look into it before you send it")
    failed = any(finding.state == "fail" for finding in findings)
    if invocation.wants_json:
        output.print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            click.echo(f"{finding.state:4}  {finding.name:18}  {finding.detail}")
            if finding.fix and finding.state != "ok":
                click.echo(f"{'':26}{finding.fix}")
    return int(failed)


def examine(invocation: Invocation) -> Iterator[Finding]:
    """Yield what was found, what everything depends on first."""
    yield Finding("python", "ok", sys.version.split()[0])
    yield _module("pyfuse3", "pip install pyfuse3 (needs libfuse3-dev and pkg-config)")
    yield _fuse_device()
    yield _fusermount()
    if os.geteuid() != 0:
        yield _allow_other()
    yield _admin()
    yield _kernel("FUSE resend", (6, 9), "when the serving process dies, the next one answers what it had not")
    yield from _kernel_mode(invocation.config().cache)
    yield _directory("runtime", invocation.config().runtime)
    yield _cache(invocation.config().cache)
    yield _store(invocation)


def _module(name: str, fix: str) -> Finding:
    try:
        module = __import__(name)
    except ImportError as error:
        return Finding(name, "fail", str(error), fix)
    return Finding(name, "ok", str(getattr(module, "__version__", "present")))


def _fuse_device() -> Finding:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding("/dev/fuse", "fail", "missing", "modprobe fuse; in a container: --device /dev/fuse")
    except OSError as error:
        return Finding("/dev/fuse", "fail", f"cannot be opened: {error.strerror}", "chmod 0666 /dev/fuse, or run as root")
    return Finding("/dev/fuse", "ok", "opens")


def _fusermount() -> Finding:
    path = shutil.which("fusermount3")
    if path is None:
        state = "warn" if os.geteuid() == 0 else "fail"
        return Finding("fusermount3", state, "not found: users without root cannot mount", "apt-get install fuse3")
    if os.geteuid() != 0 and not Path(path).stat().st_mode & 0o4000:
        return Finding("fusermount3", "fail", f"{path} is not setuid root", f"chmod u+s {path}, or reinstall fuse3")
    return Finding("fusermount3", "ok", path)


def _allow_other() -> Finding:
    """Whether others, root included, may look into a mount that this user makes."""
    try:
        lines = Path("/etc/fuse.conf").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if "user_allow_other" in (line.strip() for line in lines):
        return Finding("user_allow_other", "ok", "set in /etc/fuse.conf")
    return Finding(
        "user_allow_other", "warn", "not set: only this user sees what it mounts", "add a line user_allow_other to /etc/fuse.conf"
    )


def _admin() -> Finding:
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    if effective >> _CAP_SYS_ADMIN & 1:
        return Finding("CAP_SYS_ADMIN", "ok", "held: one daemon serves all mounts")
    return Finding("CAP_SYS_ADMIN", "warn", "not held: a daemon for each mount, and only this user sees it", "run as root")


def _kernel(name: str, needed: tuple[int, int], gives: str) -> Finding:
    release = os.uname().release
    have = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    if have >= needed:
        return Finding(name, "ok", f"Linux {release}: {gives}")
    return Finding(
        name,
        "warn",
        f"Linux {release} does not have it: {gives}",
        f"Linux {needed[0]}.{needed[1]} or newer; before that, what is being asked for in that moment fails, and mounts stay",
    )


def _kernel_mode(cache: Path) -> Iterator[Finding]:
    """All of it is tried, where the trees will lie. Nothing of it is a failure: without it there is FUSE mode."""
    from imagefs.errors import ImageFSError
    from imagefs.mount.features import FUSE_DEVICE, VERITY, probe, probe_verity

    there = _existing(cache)
    try:
        mode = probe(there)
        for feature in mode.features:
            if feature.name != FUSE_DEVICE:  # That has a line of its own.
                yield Finding(feature.name, "ok" if feature.ok else "warn", feature.why, feature.hint)
        detail = f"works: {mode.reason}" if mode.ok else f"does not work here, FUSE mode does: {mode.reason}"
        yield Finding("kernel mode", "ok" if mode.ok else "warn", detail)
    except ImageFSError as error:
        yield Finding("kernel mode", "warn", error.message, error.hint)
    try:
        verity = probe_verity(there)
        yield Finding(verity.name, "ok" if verity.ok else "warn", verity.why, verity.hint)
    except ImageFSError as error:
        yield Finding(VERITY, "warn", error.message)


def _existing(path: Path) -> Path:
    # Unlike Path.exists this also answers where this user may not look.
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110
        path = path.parent
    return path


def _directory(name: str, path: Path) -> Finding:
    there = _existing(path)
    if not there.is_dir():
        return Finding(name, "fail", f"{there} is not a directory", f"choose another with --{name}")
    try:
        # Nothing but an attempt knows of read-only file systems, full ones and the rules of security modules.
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"imagefs")
    except OSError as error:
        return Finding(name, "fail", f"{there} cannot be written: {error.strerror}", f"choose another with --{name}, or run as its owner")
    usage = shutil.disk_usage(there)
    made = "" if there == path else " (will be made)"
    return Finding(name, "ok", f"{path}{made}, {output.size(usage.free)} free")


def _cache(path: Path) -> Finding:
    """What a mount would refuse is said here, and what follows from where the directory is."""
    from imagefs.cache.disk_place import look_at
    from imagefs.errors import ImageFSError

    finding = _directory("cache", path)
    if finding.state == "ok" and _existing(path) == path:
        try:
            warnings = look_at(path)
        except ImageFSError as error:
            return Finding("cache", "fail", error.message, error.hint)
        if warnings:
            return Finding("cache", "warn", "; ".join(warnings), "use a directory on a local disk: --cache")
    return finding


def _store(invocation: Invocation) -> Finding:
    """A store that cannot be used is a warning: this host may be fine, and another ``--store`` too."""
    from imagefs.config import store_path
    from imagefs.errors import ImageFSError

    url = invocation.config().store
    try:
        store = invocation.store()
        count = sum(1 for _ in store.list("refs/"))
        store.close()
    except ImageFSError as error:
        return Finding("store", "warn", f"{url}: {error.message}", error.hint)
    directory = store_path(url)
    if directory is not None and not os.access(directory, os.W_OK):
        return Finding("store", "warn", f"{url}, {count} refs, read-only: images can be mounted, not converted", "run as its owner")
    return Finding("store", "ok", f"{url}, {count} refs")
