"""What else starts programs from an image that is elsewhere: squashfs over several carriers, ratarmount, rclone.

Each has the settings that it did best with; what was tried for that stands beside them.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.starts import processes
from bench.starts.place import BUCKET, PROGRAMS, Place, Prepared, have, rclone
from bench.starts.systems import Host, System
from tests import weed

_MOUNT = 60.0
_HANDLES = 1
_STREAMS = ("--vfs-read-chunk-size=4M", "--vfs-read-chunk-streams=8")


class _Mounting(Host):
    """A host whose root is what ``mount(stack, host)`` mounts, in a stack that unmounts it again."""

    def __init__(self, folder: Path, mount: Callable[[ExitStack, "_Mounting", float], Path]) -> None:
        super().__init__(folder)
        self._mount = mount

    @contextlib.contextmanager
    def root(self, seconds: float) -> Iterator[Path]:
        with ExitStack() as stack:
            yield self._mount(stack, self, min(seconds, _MOUNT))


class Squash(System):
    """One squashfs: a carrier makes it a local file, a driver mounts it."""

    kernel = False

    def prepare(self, prepared: Prepared) -> None:
        """Make it, and have the HTTP server serve it."""
        prepared.serve_file(self.where, prepared.squashfs())

    @contextlib.contextmanager
    def host(self, prepared: Prepared, folder: Path) -> Iterator[Host]:
        """Give a host with nothing."""

        def mount(stack: ExitStack, host: _Mounting, seconds: float) -> Path:
            image = self.carry(prepared, stack, host, seconds)
            point = host.folder / "root"
            if self.kernel:
                return stack.enter_context(processes.mounted(point, "-t", "squashfs", "-o", "ro,loop", image, seconds=seconds))
            driver = ("squashfuse_ll", "-f", "-o", "ro,allow_other,timeout=86400", image, point)
            return stack.enter_context(processes.serving(driver, point, seconds))

        yield _Mounting(folder, mount)

    def carry(self, prepared: Prepared, stack: ExitStack, host: _Mounting, seconds: float) -> Path:
        """Make the squashfs a file here, and give its path."""
        raise NotImplementedError


class SquashHttpdirfs(Squash):
    """squashfuse on httpdirfs."""

    name = "squashfuse-httpdirfs"
    title = "squashfuse on httpdirfs"
    settings = (
        "`httpdirfs --cache --dl-seg-size 1 --max-conns 32`: what it read stays on disk, in the smallest segments that there are (of 8 MB"
        " a small read would wait for all); `squashfuse_ll -o timeout=86400`, so that the kernel keeps names; squashfs of zstd 6 in blocks"
        " of 128 KiB: larger ones move and unpack more for a small read"
    )

    def missing(self) -> str:
        """Look for the tools."""
        return have("httpdirfs", "squashfuse_ll", "mksquashfs")

    def carry(self, prepared: Prepared, stack: ExitStack, host: _Mounting, seconds: float) -> Path:
        """Mount the HTTP folder."""
        url = self.where.web.url + prepared.serve_file(self.where)
        point, cache = host.folder / "http", host.folder / "cache"
        cache.mkdir(exist_ok=True)
        options = ("--cache", "--cache-location", cache, "--dl-seg-size", "1", "--max-conns", "32")
        stack.enter_context(processes.serving(("httpdirfs", "-f", *options, "-o", "allow_other", url, point), point, seconds))
        return point / "image.squashfs"


class SquashKernelHttpdirfs(SquashHttpdirfs):
    """The kernel's squashfs on httpdirfs."""

    name = "squashfs-httpdirfs"
    title = "kernel squashfs on httpdirfs"
    settings = "the same, mounted by the kernel through a loop device"
    kernel = True


class SquashNbd(Squash):
    """squashfuse on nbdkit and nbdfuse."""

    name = "squashfuse-nbd"
    title = "squashfuse on nbdkit"
    settings = (
        "`nbdkit --filter=cache curl cache-min-block-size=256K cache-on-read=true` with 16 threads, `nbdfuse -C 16`, multi-conn forced, or"
        " there would be one GET at a time; its cache is a temporary file, so a second start moves all again"
    )

    def missing(self) -> str:
        """Look for the tools."""
        return have("nbdkit", "nbdfuse", "mksquashfs")

    def carry(self, prepared: Prepared, stack: ExitStack, host: _Mounting, seconds: float) -> Path:
        """Mount a block device's file."""
        url = f"{self.where.web.url}{prepared.serve_file(self.where)}image.squashfs"
        point, socket = host.folder / "nbd", host.folder / "socket"
        socket.unlink(missing_ok=True)
        filters = ("--filter=multi-conn", "--filter=cache")
        settings = ("multi-conn-mode=unsafe", "cache-min-block-size=256K", "cache-on-read=true")
        server = ("nbdkit", "-f", "-r", "-t", "16", "-U", socket, *filters, "curl", url, *settings)
        stack.enter_context(processes.running(server, socket.exists, seconds))
        client = ("nbdfuse", "-r", "-C", "16", "-o", "allow_other", f"{point}/image", f"nbd+unix:///?socket={socket}")
        stack.enter_context(processes.serving(client, point, seconds))
        return point / "image"


class SquashKernelNbd(SquashNbd):
    """The kernel's squashfs on nbdkit."""

    name = "squashfs-nbd"
    title = "kernel squashfs on nbdkit"
    settings = "the same, mounted by the kernel through a loop device"
    kernel = True


class SquashS3fs(Squash):
    """The kernel's squashfs on s3fs."""

    name = "squashfs-s3fs"
    title = "kernel squashfs on s3fs"
    settings = (
        "`s3fs -o use_cache,kernel_cache,multipart_size=5,parallel_count=1`: what it read stays on disk, in the smallest parts there are"
        " (it fetches `multipart_size` x `parallel_count` MB for a small read: 50 by default)"
    )
    kernel = True

    def missing(self) -> str:
        """Look for the tools."""
        return have("s3fs", "mksquashfs", PROGRAMS / "rclone")

    def prepare(self, prepared: Prepared) -> None:
        """Put it into the bucket."""
        prepared.upload_squashfs(self.where)

    def carry(self, prepared: Prepared, stack: ExitStack, host: _Mounting, seconds: float) -> Path:
        """Mount the bucket."""
        folder = prepared.upload_squashfs(self.where).partition("/")[2]
        point, keys = host.folder / "s3", host.folder / "keys"
        keys.write_text(f"{weed.ACCESS_KEY}:{weed.SECRET_KEY}\n")
        keys.chmod(0o600)
        (host.folder / "cache").mkdir(exist_ok=True)
        options = {
            "url": self.where.s3.url,
            "passwd_file": keys,
            "use_cache": host.folder / "cache",
            "multipart_size": 5,
            "parallel_count": 1,
        }
        given = ",".join(
            ("ro", "use_path_request_style", "allow_other", "kernel_cache", *(f"{name}={value}" for name, value in options.items()))
        )
        stack.enter_context(processes.serving(("s3fs", BUCKET, point, "-f", "-o", given), point, seconds))
        return point / folder / "image.squashfs"


class SquashRclone(Squash):
    """The kernel's squashfs on an rclone mount."""

    name = "squashfs-rclone"
    title = "kernel squashfs on rclone"
    settings = (
        "`rclone mount --vfs-cache-mode full --vfs-read-chunk-size 4M --vfs-read-chunk-streams 8`: what it read stays there; it reads past"
        " what was asked for on 8 connections, which moves much and waits little"
    )
    kernel = True

    def missing(self) -> str:
        """Look for the tools."""
        return have("mksquashfs", PROGRAMS / "rclone")

    def prepare(self, prepared: Prepared) -> None:
        """Put it into the bucket."""
        prepared.upload_squashfs(self.where)

    def carry(self, prepared: Prepared, stack: ExitStack, host: _Mounting, seconds: float) -> Path:
        """Mount the bucket's folder."""
        source = prepared.upload_squashfs(self.where)
        point = stack.enter_context(mount_rclone(self.where, source, host, *_STREAMS, seconds=seconds))
        return point / "image.squashfs"


@contextlib.contextmanager
def mount_rclone(where: Place, source: str, host: Host, *options: str, seconds: float) -> Iterator[Path]:
    """Mount a folder of the S3 server with rclone, its cache in the host's folder."""
    point = host.folder / "rclone"
    given = [
        *("--read-only", "--allow-other", "--vfs-cache-mode=full", f"--cache-dir={host.folder / 'cache'}", "--dir-cache-time=24h"),
        *("--use-server-modtime", "--attr-timeout=24h", "--vfs-fast-fingerprint", "--poll-interval=0", "--no-checksum"),
        f"--vfs-handle-caching={_HANDLES}s",
    ]
    command = (*rclone(where, far=True), "mount", f":s3:{source}", point, *given, *options)
    with processes.serving(command, point, seconds, where.environment(far=True)):
        yield point
        # What its cache has is written down when it lets go of a file's handle, and not when it is unmounted or ended.
        time.sleep(2 * _HANDLES)


class Rclone(System):
    """The unpacked tree in S3, mounted by rclone."""

    name = "rclone"
    title = "rclone mount"
    settings = (
        "the unpacked tree in S3, `--vfs-cache-mode full --links --vfs-refresh`, names and times kept for a day; `--use-server-modtime`, or"
        " every `stat` would ask S3: so Python's compiled files are made anew to be valid without their sources' times"
    )

    def missing(self) -> str:
        """Look for rclone."""
        return have(PROGRAMS / "rclone")

    def prepare(self, prepared: Prepared) -> None:
        """Upload the tree."""
        prepared.upload(self.where)

    @contextlib.contextmanager
    def host(self, prepared: Prepared, folder: Path) -> Iterator[Host]:
        """Give a host with nothing."""

        def mount(stack: ExitStack, host: _Mounting, seconds: float) -> Path:
            options = ("--links", "--vfs-refresh", "--file-perms=0755", "--dir-perms=0755", *_STREAMS)
            return stack.enter_context(mount_rclone(self.where, prepared.upload(self.where), host, *options, seconds=seconds))

        yield _Mounting(folder, mount)


class Ratarmount(System):
    """A tar over HTTP with an index, mounted by ratarmount."""

    name = "ratarmount"
    title = "ratarmount on HTTP"
    settings = (
        "an uncompressed tar, in which each read is one range, and its index beside it, made before; `-P 0`;"
        " fsspec reads blocks of 1 MiB and keeps 256 of them; nothing stays on disk, so a second start moves all again"
    )

    def missing(self) -> str:
        """Look for ratarmount."""
        return have(PROGRAMS / "ratarmount")

    def prepare(self, prepared: Prepared) -> None:
        """Make the tar and the index, and have the HTTP server serve them."""
        prepared.serve_file(self.where, *prepared.indexed().iterdir())

    @contextlib.contextmanager
    def host(self, prepared: Prepared, folder: Path) -> Iterator[Host]:
        """Give a host with nothing."""

        def mount(stack: ExitStack, host: _Mounting, seconds: float) -> Path:
            point = host.folder / "root"
            url = f"{self.where.web.url}{prepared.serve_file(self.where)}image.tar"
            options = ("-f", "-o", "allow_other,ro", "--index-file", f"{url}.index.sqlite", "--no-verify-mtime", "-P", "0")
            blocks = {"block_size": 1 << 20, "cache_type": "blockcache", "cache_options": {"maxblocks": 256}}
            environment = self.where.environment(far=True) | {
                "RATARMOUNT_INDEX_TMPDIR": str(host.folder),
                "TMPDIR": str(host.folder),
                "FSSPEC_HTTP": json.dumps(blocks),
            }
            stack.enter_context(processes.serving((PROGRAMS / "ratarmount", *options, url, point), point, seconds, environment))
            return point

        yield _Mounting(folder, mount)


PEERS: tuple[type[System], ...] = (
    SquashHttpdirfs,
    SquashKernelHttpdirfs,
    SquashNbd,
    SquashKernelNbd,
    SquashRclone,
    SquashS3fs,
    Ratarmount,
    Rclone,
)
