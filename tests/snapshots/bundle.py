"""A bundle with Debian's redis: a program that has nothing of ours in it, and no Python."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from tests.snapshots.place import DEADLINE, Network
from tests.system.world import missing

PROGRAM: Final = Path("/usr/bin/redis-check-rdb")
"""Debian's redis-server is a link to it: the program goes by its name."""

ASK: Final = """
import socket, sys, time
host, port, words = sys.argv[1], int(sys.argv[2]), sys.argv[3]
until = time.monotonic() + 30
while True:
    try:
        connection = socket.create_connection((host, port), 5)
        break
    except OSError:
        if time.monotonic() > until: raise
        time.sleep(0.01)
with connection:
    connection.sendall(words.encode())
    connection.settimeout(30)
    while data := connection.recv(65536): sys.stdout.write(data.decode())
"""
"""Says something to redis, in lines, and writes what it answers until it hangs up."""

SERVER: Final = "/usr/bin/redis-server"


def make_root(folder: Path) -> Path:
    """Make a root file system with redis, its libraries, and nothing else that runs."""
    if not PROGRAM.exists():
        missing("no redis here: apt-get install redis-tools")
    for name in ("usr/bin", "etc", "tmp", "proc", "dev", "sys"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    shutil.copy(PROGRAM, folder / SERVER[1:])
    (folder / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    needed = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
    for library in (word for word in needed.split() if word.startswith("/")):
        target = folder / library[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    shutil.copy("/etc/ld.so.cache", folder / "etc" / "ld.so.cache")
    return folder


def config(root: Path, *arguments: str) -> dict[str, Any]:
    """Return a configuration as tools write it, for redis without files of its own."""
    own = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [SERVER, "--save", "", "--bind", "0.0.0.0", "--protected-mode", "no", *arguments],
            "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
            "cwd": "/tmp",
            "capabilities": {kind: ["CAP_AUDIT_WRITE", "CAP_KILL"] for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(root)},
        "hostname": "redis",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*own, "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": own},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*own, "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore"],
        },
    }


def write(folder: Path, document: dict[str, Any]) -> Path:
    """Make a bundle of a configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def say(network: Network, port: int, *lines: str) -> str:
    """Say lines to redis in a network, from its peer; return what it answers until it has hung up."""
    with network.peer(ASK, network.address, str(port), "".join(f"{line}\r\n" for line in (*lines, "QUIT"))) as asking:
        answer, _ = asking.communicate(timeout=DEADLINE)
    assert asking.returncode == 0
    return answer
