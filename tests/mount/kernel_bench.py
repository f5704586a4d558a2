"""What kernel mode costs, beside plain ext4: ``python -m tests.mount.kernel_bench [FOLDER]``, as root.

Times of the calls themselves, and of what a program does in the mount: walk 20,000 entries with their attributes, open and read 2,000 small
files. "First" is with a file system that was just mounted, "again" the best of five after it. The plain one and the objects lie on one ext4
in a file of its own, so that "first" is the same for both: no names known, and all blocks in the page cache.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from imagefs.mount.bind import unmount
from imagefs.mount.features import probe
from imagefs.mount.kernel import Backing, mount_image, mount_tree, settle
from tests.mount.kernel_place import Place

_FOLDERS, _FILES, _READ = 200, 100, 2000


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def _walk(folder: Path) -> int:
    count, pending = 0, [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                count += 1
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return count


def _read(folder: Path) -> int:
    size = 0
    for number in range(_READ):
        descriptor = os.open(f"{folder}/{number % _FOLDERS}/{number // _FOLDERS}", os.O_RDONLY)
        size += len(os.read(descriptor, 1 << 20))
        os.close(descriptor)
    return size


def _calls(place: Place) -> None:
    for backing in Backing:
        rows: dict[str, list[float]] = {}
        for _ in range(100):
            for name, call in (
                ("mount_tree", lambda: mount_tree(place.tree, place.tree_mount, backing=backing)),  # noqa: B023
                ("mount_image", lambda: mount_image(place.image, place.tree_mount, place.objects, place.lazy)),
                ("settle", lambda: settle(place.image)),
                ("unmount image", lambda: unmount(place.image)),
                ("unmount tree", lambda: unmount(place.tree_mount)),
            ):
                rows.setdefault(name, []).append(_timed(call))
        both = median(map(sum, zip(rows["mount_tree"], rows["mount_image"], strict=True)))
        print(f"tree from a {backing}, p50 of 100 in ms: both mounts {both:.2f};", {name: round(median(t), 2) for name, t in rows.items()})


def main() -> None:
    """Print the figures."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kernel-bench-", dir=sys.argv[1] if sys.argv[1:] else None)))
        disk, plain = folder / "disk", folder / "plain"
        with disk.open("wb") as file:
            file.truncate(1 << 30)
        plain.mkdir()
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, plain], check=True)
        stack.callback(lambda: unmount(plain))
        place = Place(plain / "image")
        for number in range(_FOLDERS * _FILES):
            path, data = f"{number % _FOLDERS}/{number // _FOLDERS}", b"%d:" % number + b"x" * (500 + number % 3000)
            place.file(path, data, ssd=True)
            (plain / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            (plain / "files" / path).write_bytes(data)
        tree = folder / "tree"
        tree.write_bytes(place.write().read_bytes())
        tree_mount, image = folder / "tree-mount", folder / "image"
        tree_mount.mkdir()
        image.mkdir()
        print("probe, ms:", round(median(_timed(probe) for _ in range(20)), 1), "p50 of 20")
        small = Place(folder / "small")
        small.file("f", b"x" * 100, ssd=True)
        small.write()
        _calls(small)
        for name, work in ((f"walk {_FOLDERS * (_FILES + 1)} entries", _walk), (f"read {_READ} files", _read)):
            first: dict[str, list[float]] = {"ext4": [], "image": []}
            again: dict[str, list[float]] = {"ext4": [], "image": []}
            for _ in range(7):
                subprocess.run(["umount", plain], check=True)
                subprocess.run(["mount", "-o", "loop", disk, plain], check=True)
                mount_tree(tree, tree_mount)
                mount_image(image, tree_mount, place.objects, place.lazy)
                for kind, top in (("ext4", plain / "files"), ("image", image)):
                    first[kind].append(_timed(lambda: work(top)))  # noqa: B023
                    again[kind].append(min(_timed(lambda: work(top)) for _ in range(5)))  # noqa: B023
                unmount(image)
                unmount(tree_mount)
            for when, times in (("first", first), ("again", again)):
                ext4, ours = median(times["ext4"]), median(times["image"])
                print(f"{name}, {when}, p50 of 7 in ms: ext4 {ext4:.1f}, image {ours:.1f}, ratio {ours / ext4:.2f}")


if __name__ == "__main__":
    main()
