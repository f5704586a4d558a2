"""The source tree of a service, content-addressed: what lies below a directory, and the agent, as an image of a few kilobytes.

It is seen in the sandbox at :data:`TOP`, which no image has of its own, and it has the empty directory that each replica's own is bound at.
So an empty host needs nothing of the program but the store: a snapshot names the image and this tree.

Invariants: the tree depends on names, contents and the execute bits of the files alone, not on this host's times, owners or umask; hidden
files, caches of compiled code and what is no file, directory or link stay out; its size is bounded.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import snapshotstore
from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, LimitError, NotFoundError, UsageError
from imagefs.store.base import ObjectStore, blob_key, pack_key
from imagefs.store.images import get_blob, get_manifest
from imagefs.store.refs import Ref, read
from snapshotstore.manifest import key_of

TOP: Final = "/.imagefs"
APP: Final = f"{TOP}/app"
AGENT: Final = f"{TOP}/agent"
REPLICA: Final = f"{TOP}/replica"

BYTES_MAX: Final = 256 << 20
FILES_MAX: Final = 20_000

_AGENT_FILES: Final = ("__init__.py", "agent.py", "app.py", "renewal.py")
_WORD: Final = re.compile(r"[a-z0-9]+")
_LEFT_OUT: Final = frozenset({"__pycache__", "node_modules"})
_SUFFIXES: Final = (".pyc", ".pyo")


class SourceFile(NamedTuple):
    """One file or link: where it is in the tree, where here, its mode there, and a link's target."""

    name: str
    path: Path
    mode: int
    target: str = ""


class SourceTree(NamedTuple):
    """What is to be in the tree, and the ``digest`` of all of it, in hex."""

    files: list[SourceFile]
    digest: str


def read_tree(folder: Path) -> SourceTree:
    """Read what lies below ``folder``, and the agent. ``LimitError`` for a tree that is too large, ``UsageError`` for none."""
    agent = Path(snapshotstore.__file__).parent
    files = [SourceFile(f"agent/snapshotstore/{name}", agent / name, 0o644) for name in _AGENT_FILES]
    size = 0
    for found in _below(folder):
        files.append(found)
        size += 0 if found.target else found.path.stat().st_size
        if len(files) > FILES_MAX or size > BYTES_MAX:
            raise LimitError(
                f"{folder} has more than {FILES_MAX} files or {BYTES_MAX >> 20} MiB",
                hint="--source names the directory of the program's modules; what is large belongs into the image",
            )
    parts = {found.name: [found.mode, found.target or digest_of(found.path.read_bytes()).hex()] for found in files}
    return SourceTree(files, key_of(files=parts))


def stamp(folder: Path) -> bytes:
    """Return what is another one when a file has changed that :func:`read_tree` reads, without reading any. Errors as there."""
    seen = []
    for found in _below(folder):
        state = found.path.lstat()
        seen.append((found.name, found.mode, found.target, state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns))
    return digest_of(repr(seen).encode(errors="surrogateescape"))


def publish(store: ObjectStore, tree: SourceTree, app: str, *, recheck: bool = False) -> str:
    """Return the manifest of the tree, in hex, which is put into the store if it is not there; with ``recheck``, or damaged there."""
    ref = Ref.parse(f"sources/{slug(app)}:{tree.digest[:32]}")
    if not recheck:
        with suppress(NotFoundError):
            return read(store, ref).manifest
    # Which a source that is there need not wait for.
    import tempfile  # noqa: PLC0415

    from imagefs.convert.convert import convert  # noqa: PLC0415
    from imagefs.store.checked import CheckedStore  # noqa: PLC0415

    if recheck:
        store = CheckedStore(store)
    with tempfile.TemporaryDirectory(prefix="imagefs-source-") as name:
        folder = Path(name) / "tree"
        _lay_out(tree, folder)
        return convert(f"dir:{folder}", ref, store, jobs=1).manifest


def heal(store: ObjectStore, manifest: str, folder: Path, app: str) -> str | None:
    """Put the tree of ``folder`` into the store again, if what that has as ``manifest``, in hex, is damaged; return its manifest then.

    It can be read when this returns. Raises what :func:`read_tree` and a store that is not well raise.
    """
    if _is_whole(store, manifest):
        return None
    made = publish(store, read_tree(folder), app, recheck=True)
    import time  # noqa: PLC0415

    from imagefs.cache.flights import BAD_SECONDS  # noqa: PLC0415

    time.sleep(BAD_SECONDS)  # so long a daemon refuses what it has found damaged
    return made


def _is_whole(store: ObjectStore, manifest: str) -> bool:
    # Which is asked of what could not be started.
    from imagefs.format.objectmap import ObjectMap  # noqa: PLC0415
    from imagefs.store.checked import CheckedStore  # noqa: PLC0415

    checked = CheckedStore(store)
    try:
        found = get_manifest(checked, manifest)
        checked.head(blob_key(found.tree.digest))
        objects = ObjectMap(get_blob(checked, found.objects.digest, found.objects.size))
        for number in range(objects.pack_count):
            checked.head(pack_key(objects.pack(number).digest.hex()))
    except (NotFoundError, IntegrityError):
        return False
    return True


def slug(app: str) -> str:
    """Return an app's name as a part of the name of a ref."""
    return "-".join(_WORD.findall(app.lower())) or "app"


def _below(folder: Path) -> Iterator[SourceFile]:
    if not folder.is_dir():
        raise UsageError(f"there is no directory {folder}", hint="--source names the directory of the program's modules")
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _LEFT_OUT)
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in links]
        for name in sorted([*names, *links]):
            if name.startswith(".") or name.endswith(_SUFFIXES):
                continue
            path = here / name
            inside = f"app/{path.relative_to(folder)}"
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                yield SourceFile(inside, path, 0o777, str(path.readlink()))
            elif stat.S_ISREG(mode):
                yield SourceFile(inside, path, 0o755 if mode & 0o100 else 0o644)


def _lay_out(tree: SourceTree, folder: Path) -> None:
    """Copy the files to where they are in the tree, with times and modes that are the same everywhere."""
    top = folder / TOP.strip("/")
    for name in ("app", "agent/snapshotstore", "replica"):
        (top / name).mkdir(parents=True)
    for found in tree.files:
        path = top / found.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if found.target:
            path.symlink_to(found.target)
        else:
            shutil.copyfile(found.path, path)
            path.chmod(found.mode)
    for place, folders, names in os.walk(folder):
        Path(place).chmod(0o755)
        for name in (*folders, *names):
            path = Path(place, name)
            os.chown(path, 0, 0, follow_symlinks=False)
            os.utime(path, ns=(0, 0), follow_symlinks=False)
    os.utime(folder, ns=(0, 0))
