"""What a system is, and the two that every other is measured by: the tree on ext4, and a plain pull and unpack."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.starts import processes
from bench.starts.place import Place, Prepared, have


class Host(ABC):
    """One host on which a system starts a workload: what it keeps between two starts is in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Keep everything below ``folder``."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def root(self, seconds: float) -> contextlib.AbstractContextManager[Path]:
        """Have the image's root directory at a path for the length of a block.

        What happens before the block is part of a start, what happens after it is not. ``seconds`` are left for the former.
        """

    def before(self, *, cold: bool) -> None:
        """Do what has to be done before a start and is no part of it."""
        del cold

    def figures(self) -> dict[str, Any]:
        """Give what the system itself tells of the start that has just ended; asked within the block of :meth:`root`."""
        return {}


class System(ABC):
    """Something that starts programs from images."""

    name: str
    title: str
    kind: str = "peer"
    """``native``, ``pull``, ``peer`` (it is lazy) or ``ours``."""

    settings: str = ""
    """What it was told, and why; a cell of a table."""

    def __init__(self, where: Place) -> None:
        """Belong to one run."""
        self.where = where

    def missing(self) -> str:
        """Say why it cannot run here; nothing if it can."""
        return ""

    @abstractmethod
    def prepare(self, prepared: Prepared) -> None:
        """Do what a publisher of the image does once, past the link."""

    @abstractmethod
    def host(self, prepared: Prepared, folder: Path) -> contextlib.AbstractContextManager[Host]:
        """Have a host that has nothing yet, in ``folder``, for the length of a block."""


class Native(System):
    """The image's tree on the disk."""

    name = "native"
    title = "ext4"
    kind = "native"
    settings = "the unpacked tree; cold: the page cache has none of it, warm: what the first start left there"

    def prepare(self, prepared: Prepared) -> None:
        """Unpack."""
        prepared.tree()

    @contextlib.contextmanager
    def host(self, prepared: Prepared, folder: Path) -> Iterator[Host]:
        """Give the tree."""
        yield _NativeHost(folder, prepared.tree())


class _NativeHost(Host):
    def __init__(self, folder: Path, tree: Path) -> None:
        super().__init__(folder)
        self.tree = tree

    def before(self, *, cold: bool) -> None:
        if cold:
            forget(self.tree)

    @contextlib.contextmanager
    def root(self, seconds: float) -> Iterator[Path]:
        del seconds
        yield self.tree


def forget(tree: Path) -> None:
    """Drop the tree's pages, and all names and inodes, from the kernel's caches; the servers' files stay there."""
    os.sync()
    for folder, _, names in os.walk(tree):
        for name in names:
            with contextlib.suppress(OSError):
                descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # noqa: PTH118 - 20,000 files
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
    Path("/proc/sys/vm/drop_caches").write_text("2")


class Pull(System):
    """Pull and unpack, as a container engine without lazy loading does."""

    name = "pull"
    title = "skopeo + umoci"
    kind = "pull"
    settings = (
        "`skopeo copy` of all layers at once (its own default of 6) from an OCI registry that answers without delay of its own, then"
        " `umoci raw unpack`; gzip layers, since this umoci knows no zstd; the second start finds the tree unpacked"
    )

    def missing(self) -> str:
        """Look for both tools."""
        return have("skopeo", "umoci")

    def prepare(self, prepared: Prepared) -> None:
        """Have the registry serve the image."""
        prepared.publish(self.where)

    @contextlib.contextmanager
    def host(self, prepared: Prepared, folder: Path) -> Iterator[Host]:
        """Give a host without the image."""
        source = f"docker://{self.where.web.address}/{prepared.publish(self.where)}:{prepared.image.tag}"
        yield _PullHost(folder, source)


class _PullHost(Host):
    def __init__(self, folder: Path, source: str) -> None:
        super().__init__(folder)
        self._source = source

    @contextlib.contextmanager
    def root(self, seconds: float) -> Iterator[Path]:
        tree = self.folder / "root"
        if not tree.exists():
            layout = self.folder / "layout"
            skopeo = ("skopeo", "copy", "--insecure-policy", "--quiet", "--src-tls-verify=false")
            processes.command(*skopeo, self._source, f"oci:{layout}:image", seconds=seconds)
            processes.command("umoci", "raw", "unpack", "--image", f"{layout}:image", tree, seconds=seconds)
        yield tree
