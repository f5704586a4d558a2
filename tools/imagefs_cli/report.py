"""The bundle that ``imagefs doctor --report`` writes: what somebody who is to find a fault asks for first, without secrets.

Each part is had by itself, within a bounded time: one that cannot be had says why in its place, so a report comes about in every state of
the host. Nothing in it is content of an image, and the store is asked for no more than ``doctor`` asks.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from imagefs import __version__
from imagefs_cli.options import Invocation
from imagefs_cli.redaction import redacted, redacted_json, secrets_of

_LOG_MAX: Final = 512 << 10
_PART_MAX: Final = 4 << 20
_INSTANCES_MAX: Final = 50
_KERNEL_LINES: Final = 300
_JOURNAL_SECONDS: Final = 10
_KERNEL: Final = re.compile(r"fuse|overlay|erofs|imagefs|loop\d|fs-?verity|oom|killed process|i/o error", re.IGNORECASE)
_PACKAGES: Final = (
    *("pyfuse3", "trio", "blake3", "zstandard", "isal", "google-crc32c", "msgspec", "click", "structlog", "rich"),
    *("boto3", "obstore", "lmdb", "diskcache", "prometheus-client"),
)
_SHOWN: Final = frozenset({"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "NO_PROXY"})
_README: Final = """\
A report for whoever looks into a fault of ImageFS, made by `imagefs doctor --report`.

findings.json     what `imagefs doctor` says of the host
versions.json     of ImageFS, Python, the kernel and what is installed
config.json       the settings of this command, from wherever they came
environment.json  variables that matter; of most only that they are set
mounts.txt        the mounts of ImageFS, as the kernel lists them
host.txt          memory, and room where the cache is
daemons/ID/       for each daemon: status.json, stats.json, crash.json, mounts.json, the end of daemon.log
journal.txt       the end of what the service has said, where it runs under systemd
kernel.txt        what the kernel has said of FUSE, overlayfs, EROFS, and of processes that it has ended

Secrets are replaced by ***: the values of variables that are called so, and what looks like one. Names of refs, mountpoints,
directories, hosts and programs are in it. Look into it before you send it.
"""


def write_report(target: Path, invocation: Invocation, findings: Iterable[Any]) -> list[str]:
    """Write the bundle to a new file ``target``, for this user alone; return the names of its parts.

    ``UsageError`` if there is such a file, ``AccessError`` if it cannot be written.
    """
    from imagefs.errors import AccessError, UsageError

    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{target} is there already", hint="name a file that is to be made") from None
    except OSError as error:
        raise AccessError(f"cannot write {target}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            return _Bundle(file, invocation).write(findings)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise AccessError(f"cannot write {target}: {error.strerror}") from error
        raise


class _Bundle:
    """One bundle, while it is written."""

    def __init__(self, file: io.BufferedWriter, invocation: Invocation) -> None:
        from imagefs.config import environment

        self._file = file
        self._config = invocation.config()
        self._environment = environment()
        self._folder = time.strftime("imagefs-report-%Y%m%d-%H%M%S")
        self._secrets = secrets_of(self._environment)
        self._names: list[str] = []

    def write(self, findings: Iterable[Any]) -> list[str]:
        instances = self._instances()
        # What a daemon was started with may be in its log.
        for folder in instances:
            self._secrets += secrets_of(_environment_of(folder))
        with tarfile.open(fileobj=self._file, mode="w:gz", format=tarfile.PAX_FORMAT) as self._tar:
            self._text("README.txt", lambda: _README)
            self._json("versions.json", _versions)
            self._json("config.json", lambda: asdict(self._config))
            self._json("environment.json", self._variables)
            self._text("mounts.txt", self._mounts)
            self._text("host.txt", self._host)
            for folder in instances:
                self._daemon(folder)
            self._text("journal.txt", _journal)
            self._text("kernel.txt", kernel_messages)
            self._json("findings.json", lambda: [asdict(finding) for finding in findings])
        return self._names

    def _instances(self) -> list[Path]:
        """Return the directories of daemons, those that have ended included."""
        try:
            found = [path for path in self._config.runtime.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name) and path.is_dir()]
        except OSError:
            return []
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_INSTANCES_MAX]

    def _daemon(self, folder: Path) -> None:
        from imagefs.daemon.asking import QUICK, ask_again

        name = f"daemons/{folder.name}"
        self._json(f"{name}/status.json", lambda: ask_again(folder, {"op": "status"}, QUICK))
        self._json(f"{name}/stats.json", lambda: ask_again(folder, {"op": "stats"}, QUICK))
        for kept in ("crash.json", "mounts.json"):
            if (folder / kept).exists():
                self._json(f"{name}/{kept}", partial(_document, folder / kept))
        for log in ("daemon.log.1", "daemon.log"):
            if (folder / log).exists():
                self._text(f"{name}/{log}", partial(_end_of, folder / log, _LOG_MAX))

    def _variables(self) -> dict[str, str]:
        return {
            name: value if name in _SHOWN or (name.startswith("IMAGEFS_") and name != "IMAGEFS_REQUIRE") else "is set"
            for name, value in sorted(self._environment.items())
            if name.startswith(("IMAGEFS_", "AWS_", "PYTHON")) or name.upper() in {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
        }

    def _mounts(self) -> str:
        from imagefs.mount.mountinfo import is_image, parse_mountinfo

        lines = Path("/proc/self/mountinfo").read_bytes().splitlines(keepends=True)
        below = f"{self._config.runtime}/"
        ours = [line for line in lines for entry in parse_mountinfo(line) if is_image(entry) or entry.mountpoint.startswith(below)]
        return b"".join(ours).decode(errors="backslashreplace")

    def _host(self) -> str:
        place = self._config.cache
        while not place.exists() and place != place.parent:
            place = place.parent
        usage = shutil.disk_usage(place)
        memory = "\n".join(Path("/proc/meminfo").read_text(encoding="ascii").splitlines()[:5])
        return f"{memory}\n{place}: {usage.free} of {usage.total} bytes free\n{Path('/proc/self/cgroup').read_text()}"

    # -- parts -------------------------------------------------------------------------------------------------------------------------

    def _json(self, name: str, make: Callable[[], Any]) -> None:
        self._text(name, lambda: json.dumps(redacted_json(_plain(make()), self._secrets), indent=1, default=str) + "\n", is_clean=True)

    def _text(self, name: str, make: Callable[[], str], *, is_clean: bool = False) -> None:
        try:
            text = make()
        except Exception as error:  # noqa: BLE001 # a report comes about whatever is wrong: that is when it is wanted
            text, is_clean = f"could not be had: {type(error).__name__}: {error}\n", False
        data = (text if is_clean else redacted(text, self._secrets)).encode(errors="backslashreplace")
        entry = tarfile.TarInfo(f"{self._folder}/{name}")
        entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
        self._tar.addfile(entry, io.BytesIO(data))
        self._names.append(name)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: paths as text."""
    return json.loads(json.dumps(value, default=str))


def _versions() -> dict[str, Any]:
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "is missing"
    release = Path("/etc/os-release")
    return {
        "imagefs": __version__,
        "python": sys.version,
        "kernel": " ".join(os.uname()),
        "system": re.findall(r'(?m)^PRETTY_NAME="?([^"\n]*)', release.read_text(encoding="utf-8")) if release.exists() else [],
        "packages": packages,
        "programs": {name: shutil.which(name) for name in ("fusermount3", "systemctl", "mount.imagefs")},
        "user": os.geteuid(),
    }


def _environment_of(folder: Path) -> Mapping[str, str]:
    """Return the variables of the daemon in ``folder``; none where that cannot be known."""
    from imagefs.daemon.asking import QUICK, ask_again
    from imagefs.errors import ImageFSError

    try:
        pid = int(ask_again(folder, {"op": "status"}, QUICK)["pid"])
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    except (ImageFSError, OSError, ValueError, KeyError):
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _document(path: Path) -> Any:
    return json.loads(_end_of(path, _PART_MAX))


def _end_of(path: Path, limit: int) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit))
        data = file.read(limit)
    # A line that was cut might be one whose beginning says what its end is.
    return (data if size <= limit else data.partition(b"\n")[2]).decode(errors="replace")


def _journal() -> str:
    if shutil.which("journalctl") is None:
        return "there is no journal\n"
    command = ["journalctl", "--no-pager", "--output=short-iso", "--lines=2000", "--unit=imagefs*"]
    done = subprocess.run(command, capture_output=True, timeout=_JOURNAL_SECONDS, check=False, stdin=subprocess.DEVNULL)
    return (done.stdout[-_LOG_MAX:] + done.stderr[-2000:]).decode(errors="replace")


def kernel_messages(device: str = "/dev/kmsg") -> str:
    """Return what the kernel has said last of what we use. ``OSError`` if this user may not know."""
    found: list[str] = []
    descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _JOURNAL_SECONDS
        while time.monotonic() < deadline:
            try:
                record = os.read(descriptor, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # What was to come next has been overwritten.
            # "priority,number,microseconds,-;text", then lines of its own that begin with a space.
            head, _, text = record.decode(errors="replace").partition(";")
            if _KERNEL.search(text):
                seconds = int(head.split(",")[2]) / 1e6
                found.append(f"[{seconds:.3f}] {text.splitlines()[0]}\n")
    finally:
        os.close(descriptor)
    return "".join(found[-_KERNEL_LINES:])
