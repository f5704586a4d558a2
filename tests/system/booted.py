"""A host that boots: systemd as process 1 of its own namespaces, with the units of this repository and nothing else of the machine's.

It sees this machine's files. What it would write to is its own: ``/run``, the control groups, and a layer over ``/etc``, ``/srv``,
``/usr/sbin`` and ``/usr/local/bin``. It knows no units but those in ``units``, so nothing of the machine is started, emptied or set up.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.system.world import wait_until

SYSTEMD: Final = Path("/lib/systemd/systemd")
SERVICE: Final = "imagefs.service"
UNITS: Final = Path(__file__).parents[2] / "systemd"
_ROOT: Final = Path(__file__).parents[2]
_NAMESPACES: Final = ("--mount", "--pid", "--uts", "--ipc", "--cgroup")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_TARGETS: Final = ("sysinit", "basic", "shutdown", "umount", "local-fs", "remote-fs-pre", "remote-fs", "network", "network-online")
_SECONDS: Final = 60.0

_BOOT: Final = """
set -eu
mount -t tmpfs tmpfs /run
# Images that are mounted elsewhere on this machine are not this host's to hold.
awk '/ - (fuse.imagefs|overlay) imagefs /{print $5}' /proc/self/mountinfo | tac | while read -r point; do umount -l "$point"; done
umount -R /sys/fs/cgroup
if [ -n "$HYBRID" ]; then
  mount -t tmpfs tmpfs /sys/fs/cgroup
  mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
  mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
  mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
else
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
for folder in etc srv usr/sbin usr/local/bin; do
  mkdir -p "/run/layers/$folder/upper" "/run/layers/$folder/work"
  mount -t overlay -o "lowerdir=/$folder,upperdir=/run/layers/$folder/upper,workdir=/run/layers/$folder/work" overlay "/$folder"
done
cp -r "$PLACE/etc/." /etc
cp "$PLACE/imagefs" /usr/local/bin/imagefs
cp "$PLACE/mount.imagefs" /usr/sbin/mount.imagefs
export container=lxc SYSTEMD_UNIT_PATH="$PLACE/units:/run/systemd/generator" SYSTEMD_GENERATOR_PATH="$PLACE/generators"
exec /lib/systemd/systemd --system --unit=multi-user.target --show-status=0
"""


class Host:
    """One that is not booted yet."""

    def __init__(self, place: Path, config: Mapping[str, object]) -> None:
        """``config`` is what its ``/etc/imagefs/config.toml`` says."""
        self.place = place
        self.units = place / "units"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        for folder in ("units/imagefs.service.d", "etc/imagefs", "etc/default", "generators"):
            (place / folder).mkdir(parents=True)
        (place / "etc/fstab").touch()
        self.configure(config)
        self._scripts()
        for name in _TARGETS:
            (self.units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        (self.units / "multi-user.target").write_text("[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=remote-fs.target\n")
        for name in ("imagefs.service", "imagefs.target"):
            shutil.copy(UNITS / name, self.units)
        # There is no journal.
        log = f"append:{place}/daemon.log"
        (self.units / "imagefs.service.d/log.conf").write_text(f"[Service]\nStandardOutput={log}\nStandardError={log}\n")
        (place / "generators/systemd-fstab-generator").symlink_to("/lib/systemd/system-generators/systemd-fstab-generator")

    def _scripts(self) -> None:
        for name, module in (("imagefs", "main"), ("mount.imagefs", "mount_helper")):
            path = self.place / name
            code = f"import sys; from imagefs_cli.{module} import main; sys.exit(main())"
            path.write_text(f"#!/bin/sh\nPYTHONPATH={_ROOT}:{_ROOT}/tools exec {sys.executable} -c '{code}' \"$@\"\n")
            path.chmod(0o755)

    def configure(self, config: Mapping[str, object]) -> None:
        """Say what is served. At the next boot, as files are copied then."""
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in config.items()]
        (self.place / "etc/imagefs/config.toml").write_text("".join(lines))

    # -- on and off -----------------------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Return when it is up: when everything that is started at boot has been, or has failed."""
        hybrid = (_CGROUPS / "systemd").is_dir()
        joined = "".join(
            f"mkdir -p {group}; echo $$ >{group}/cgroup.procs; " for group in self._groups(hybrid=hybrid) if group.parent.is_dir()
        )
        namespaces = "setpriv --pdeathsig KILL unshare --kill-child --pid --fork --mount-proc --mount --uts --ipc --cgroup"
        env = {"PATH": os.environ["PATH"], "PLACE": str(self.place), "HYBRID": "1" if hybrid else "", "BOOT": _BOOT}
        command = ["/bin/sh", "-c", f'{joined} exec {namespaces} /bin/sh -c "$BOOT"']
        with (self.place / "boot.log").open("wb") as log:
            # Nothing of this process's: who waits for the end of its output would wait for the end of all of this.
            self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._has_init, "systemd", 30)
        wait_until(lambda: self.attempt("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}, "the boot", _SECONDS)

    def _groups(self, *, hybrid: bool) -> list[Path]:
        return [folder / f"imagefs-{os.getpid()}" for folder in ([_CGROUPS / "systemd", _CGROUPS / "unified"] if hybrid else [_CGROUPS])]

    def _has_init(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.place / "boot.log").read_text()
        for child in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self._init = int(child)
                    return True
        return False

    def off(self) -> None:
        """Cut its power."""
        if self._process is not None:
            # Its child goes with it, and with that all other processes in there.
            self._process.kill()
            self._process.wait(20)
            self._process = None
        wait_until(self._has_no_groups, "the control groups to be empty")

    def _has_no_groups(self) -> bool:
        groups = [group for hybrid in (True, False) for group in self._groups(hybrid=hybrid)]
        for group in groups:
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
        return not any(group.exists() for group in groups)

    # -- in it ----------------------------------------------------------------------------------------------------------------------------

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command where its mounts are, and leaves it among this machine's processes."""
        return ("nsenter", f"--mount=/proc/{self._init}/ns/mnt", "--")

    def attempt(self, *command: str | Path, seconds: float = _SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever that is."""
        env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        enter = ["nsenter", f"--target={self._init}", *_NAMESPACES, "--", *map(str, command)]
        return subprocess.run(enter, env=env, capture_output=True, text=True, timeout=seconds, check=False)

    def run(self, *command: str | Path, seconds: float = _SECONDS) -> str:
        """Run a command that has to succeed; return what it prints."""
        done = self.attempt(*command, seconds=seconds)
        if done.returncode:
            pytest.fail(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}{self.log()[-4000:]}")
        return done.stdout

    def show(self, unit: str, *names: str) -> list[str]:
        """Return properties of a unit."""
        found = dict(line.split("=", 1) for line in self.run("systemctl", "show", unit).splitlines() if "=" in line)
        return [found.get(name, "") for name in names]

    def status(self) -> dict[str, Any]:
        """Return what the daemon says of itself."""
        found: dict[str, Any] = json.loads(self.run("imagefs", "daemon", "status", "--json"))
        return found

    def supervisor(self) -> int:
        """Return the supervisor's process id in there, once there is one that serves."""
        wait_until(lambda: self.attempt("imagefs", "daemon", "status").returncode == 0, "a daemon", 30)
        return int(self.show(SERVICE, "MainPID")[0])

    def signal(self, name: str) -> None:
        """Send the supervisor a signal."""
        self.run("systemctl", "kill", "--kill-whom=main", f"--signal={name}", SERVICE)

    def another(self, pid: int) -> int:
        """Wait for another supervisor than ``pid`` to serve; return its process id."""
        wait_until(lambda: self.show(SERVICE, "MainPID", "ActiveState") not in ([str(pid), "active"], ["0", "active"]), "another", 30)
        wait_until(lambda: self.show(SERVICE, "ActiveState") == ["active"], "another", 30)
        return self.supervisor()

    def path(self, path: Path) -> Path:
        """Return where this process sees what is at ``path`` in there."""
        return Path(f"/proc/{self._init}/root{path}")

    def mount(self, point: Path, *options: str) -> Path:
        """Mount the image at a new directory; return it."""
        point.mkdir()
        self.run("imagefs", "mount", "test", point, "--mode", "fuse", *options)
        return point

    def mounts(self) -> dict[str, tuple[str, str]]:
        """Return what of ours is mounted where: its type, and the number of the mount, which no other mount ever has."""
        found = {}
        for line in Path(f"/proc/{self._init}/mountinfo").read_text().splitlines():
            fields, _, rest = line.partition(" - ")
            kind, source, *_ = rest.split(" ")
            if source == "imagefs":
                found[fields.split(" ")[4].replace("\\040", " ")] = (kind, fields.split(" ")[0])
        return found

    def log(self) -> str:
        """Return what the daemon has logged, over all boots."""
        path = self.place / "daemon.log"
        return path.read_text(errors="replace") if path.exists() else ""
