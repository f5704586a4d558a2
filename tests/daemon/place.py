"""A store, a cache and a runtime of a test's own, and the daemons that run there: ended with the test, whatever happened."""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from imagefs.config import Config
from imagefs.daemon import client
from imagefs.errors import ImageFSError
from imagefs.mount.bind import unmount
from imagefs.mount.mountinfo import read_mounts
from imagefs.store.opening import open_store
from tests.fuse.images import Maker
from tests.system.world import wait_until


@dataclass
class Place:
    """Everything below one directory."""

    root: Path
    store_deadline: float = 30.0
    metrics_listen: str | None = None
    scrub_days: float = 7.0
    complete_bytes_per_second: int = 0

    def __post_init__(self) -> None:
        """Make the store."""
        self.store = open_store(f"file://{self.root}/store", create=True)

    @property
    def config(self) -> Config:
        """The configuration that leads here."""
        return Config(
            store=f"file://{self.root}/store",
            cache=self.root / "cache",
            runtime=self.root / "run",
            store_deadline=self.store_deadline,
            mode="fuse",
            scrub_days=self.scrub_days,
            complete_bytes_per_second=self.complete_bytes_per_second,
            log_level="info",
            metrics_listen=self.metrics_listen,
        )

    def maker(self) -> Maker:
        """Return a maker of images for this store."""
        return Maker(self.store)

    def mountpoint(self, name: str = "mnt") -> Path:
        """Make an empty directory."""
        path = self.root / name
        path.mkdir()
        return path

    def log(self, at: str | None = None) -> str:
        """Return the daemon's log."""
        path = self.config.instance_dir(at) / "daemon.log"
        return path.read_text() if path.exists() else ""

    def trees(self) -> list[str]:
        """Return the images that the daemon shows."""
        return sorted(path.name for path in (self.config.instance_dir() / "fuse/trees").iterdir())

    def pid(self) -> int:
        """Return the daemon's process id."""
        return int(client.status(self.config)["pid"])

    def kill(self) -> None:
        """Kill the daemon and wait until it is gone."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}/fd").exists() or not any(Path(f"/proc/{pid}/fd").iterdir()), "the daemon to die")

    def mounted(self) -> list[str]:
        """Return what is mounted below this directory."""
        return [entry.mountpoint for entry in read_mounts() if entry.mountpoint.startswith(f"{self.root}/")]

    def close(self) -> list[str]:
        """End daemons and mounts; return the mounts that were still there after the daemons had ended."""
        for _ in client.instances(self.config):
            with contextlib.suppress(ImageFSError):
                client.stop(self.config)
        left = self.mounted()
        for path in reversed(left):
            unmount(Path(path), lazy=True)
        self.store.close()
        return left
