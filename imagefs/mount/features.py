"""Whether kernel mode works on this host, found out by doing it: once, small, and out of everybody's sight.

The attempt is made by a thread in a mount namespace of its own, which is gone when the thread ends, however it ends; what it mounts is a
tree of two files, in a directory that is removed again. It takes some milliseconds, so the answer is the caller's to keep. It holds for the
file system of the directory where it was tried: lay it where the trees will be.

What it does not show: FUSE as a layer. A plain directory stands in for it.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from imagefs import syscalls
from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, MountError
from imagefs.format.erofs_writer import write_tree
from imagefs.format.tree import Inode
from imagefs.mount.bind import unmount
from imagefs.mount.fscontext import MOUNT_ATTR_RDONLY, attach, explained, setting_up
from imagefs.mount.kernel import Backing, mount_image, mount_tree
from imagefs.mount.mountinfo import OVERLAY_TYPE
from imagefs.mount.watch import Watch

MOUNTING: Final = "mounting"
FUSE_DEVICE: Final = "/dev/fuse"
EROFS: Final = "EROFS"
DATA_LAYERS: Final = "data-only layers"
ON_TOP: Final = "overlay on top"
WATCHING: Final = "watching opens"
VERITY: Final = "fs-verity"

_CLONE_NEWNS: Final = 0x20000
_MS_REC: Final = 1 << 14
_MS_SLAVE: Final = 1 << 19
_CAP_SYS_ADMIN: Final = 21
_ROOT: Final = "run as root"
_PROFILE: Final = (
    "a container's seccomp profile or a security module forbids it: allow mount, unshare, fsopen, fsconfig, fsmount, move_mount"
)
_LAYERS_HINT: Final = "Linux 6.5 or newer"
_ON_TOP_HINT: Final = "containers that add their own overlay do not start on such a mount: use FUSE mode for them, or a later kernel"
_WATCHING_HINT: Final = "Linux 6.8 or newer; without it what the daemon serves is recorded, and what is local already is not"
_CONTENT: Final = (b"on SSD".ljust(4096, b"."), b"in FUSE".ljust(4096, b"."))


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that kernel mode uses: whether it works, how or why not, and what can be done. Without a ``needed`` one it cannot be."""

    name: str
    ok: bool
    why: str
    hint: str | None = None
    needed: bool = True


@dataclass(frozen=True, slots=True)
class KernelMode:
    """What was found. ``backing`` is what ``mount_tree`` is best told to use, None if nothing works."""

    features: tuple[Feature, ...]
    backing: Backing | None

    @property
    def ok(self) -> bool:
        """Whether images can be mounted in kernel mode."""
        return all(feature.ok for feature in self.features if feature.needed)

    @property
    def reason(self) -> str:
        """One line: why not, or by which means."""
        for feature in self.features:
            if feature.needed and not feature.ok:
                return f"{feature.name}: {feature.why}"
        return f"overlayfs over EROFS, from a {'loop device' if self.backing is Backing.LOOP else 'file'}"


def probe(scratch: Path | None = None) -> KernelMode:
    """Try all of kernel mode in a directory that is made below ``scratch``, or the usual one for temporary files, and removed. Blocks.

    What is not there is no error. ``MountError`` if nothing can be written in ``scratch``.
    """
    with ThreadPoolExecutor(1, "imagefs-probe") as thread:
        refused = thread.submit(_leave_namespace).result()
        features = [refused or Feature(MOUNTING, True, "permitted"), _fuse_device()]
        if refused:
            return KernelMode((*features, *_not_tried(EROFS, DATA_LAYERS, ON_TOP, WATCHING)), None)
        tried, backing = thread.submit(_try_both, scratch).result()
        return KernelMode((*features, *tried), backing)


def probe_verity(folder: Path) -> Feature:
    """Try fs-verity on a file that is made in ``folder`` and removed. Kernel mode does without. ``MountError`` if none can be written."""
    with explained(f"cannot try fs-verity in {folder}"):
        descriptor, name = tempfile.mkstemp(prefix=".imagefs-probe-", dir=folder)
        try:
            os.close(descriptor)
            Path(name).write_bytes(_CONTENT[0])
            return _enable_verity(Path(name))
        finally:
            os.unlink(name)  # noqa: PTH108 # a name from mkstemp


# -- permission ---------------------------------------------------------------------------------------------------------------------------


def _leave_namespace() -> Feature | None:
    """Give this thread its own mount namespace, from which nothing gets out. Returns what refused that."""
    try:
        syscalls.unshare(_CLONE_NEWNS)
        # A slave still follows what is unmounted outside, so this keeps nobody's mounts alive.
        syscalls.mount(None, Path("/"), _MS_SLAVE | _MS_REC)
        os.close(syscalls.fsopen(OVERLAY_TYPE))  # Some profiles know only the older calls.
    except OSError as error:
        return _refused(error.strerror or str(error))
    return None


def _refused(why: str) -> Feature:
    if _is_admin():
        return Feature(MOUNTING, False, f"refused although CAP_SYS_ADMIN is held: {why}", _PROFILE)
    return Feature(MOUNTING, False, f"CAP_SYS_ADMIN is not held: {why}", _ROOT)


def _is_admin() -> bool:
    lines = Path("/proc/thread-self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return bool(effective >> _CAP_SYS_ADMIN & 1)


def _fuse_device() -> Feature:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        hint = "modprobe fuse; in a container: --device /dev/fuse" if error.errno in {errno.ENOENT, errno.ENXIO, errno.ENODEV} else _ROOT
        return Feature(FUSE_DEVICE, False, f"cannot be opened: {error.strerror}", hint)
    return Feature(FUSE_DEVICE, True, "opens")


# -- mounts -------------------------------------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """One mount of the attempt: what shows that it works, where and how it is made, what to say if it does, and what if not."""

    name: str
    target: Path
    make: Callable[[Path], object]
    has_files: bool
    works: str
    hint: str | None


def _try_both(scratch: Path | None) -> tuple[tuple[Feature, ...], Backing | None]:
    """Try with a tree from a file; where that does not do all, with one from a loop device. Returns what does more."""
    by_file = _try(scratch, Backing.FILE)
    failed = next((feature for feature in by_file if not feature.ok and feature.name != WATCHING), None)
    if failed is None:
        return by_file, Backing.FILE
    by_loop = _try(scratch, Backing.LOOP)
    if sum(feature.ok for feature in by_loop) <= sum(feature.ok for feature in by_file):
        return by_file, Backing.FILE if by_file[0].ok else None
    return (replace(by_loop[0], why=f"{by_loop[0].why}; from a file, {failed.name}: {failed.why}"), *by_loop[1:]), Backing.LOOP


def _try(scratch: Path | None, backing: Backing) -> tuple[Feature, ...]:
    """Mount a tree, an image over it, and an overlay over that; say how far that went."""
    done: list[Feature] = []
    with ExitStack() as stack:
        with explained(f"cannot try kernel mode in {scratch or tempfile.gettempdir()}"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".imagefs-probe-", dir=scratch)))
            _lay_out(folder)
        steps = _steps(folder, backing)
        for step in steps:
            try:
                step.make(step.target)
                stack.callback(unmount, step.target)
                if step.has_files:
                    _check(step.target)
            except ImageFSError as error:
                why = error.message.replace(f"{folder}/", "")
                done.append(Feature(step.name, False, why, step.hint or error.hint, needed=step.name != ON_TOP))
                break
            done.append(Feature(step.name, True, step.works, needed=step.name != ON_TOP))
        left = [step.name for step in steps[len(done) :]]
        if any(feature.name == DATA_LAYERS and feature.ok for feature in done):
            done.append(_watch(folder / "image"))
        else:
            left.append(WATCHING)
    return (*done, *_not_tried(*left))


def _watch(image: Path) -> Feature:
    """See whether the kernel tells of opens; it does, or not, however the tree is mounted."""
    try:
        watch = Watch(image)
        try:
            (image / "0").read_bytes()
            seen = [opened for taken in watch.take() for opened in watch.opens(taken)]
        finally:
            watch.close()
    except (ImageFSError, OSError) as error:
        why = error.message if isinstance(error, ImageFSError) else str(error)
        return Feature(WATCHING, False, why, _WATCHING_HINT, needed=False)
    if not seen:
        return Feature(WATCHING, False, "the kernel does not tell of an open", _WATCHING_HINT, needed=False)
    return Feature(WATCHING, True, "opens of what is local are recorded", needed=False)


def _steps(folder: Path, backing: Backing) -> list[_Step]:
    tree, image = folder / "tree-mount", folder / "image"
    from_what = "a file" if backing is Backing.FILE else "a loop device"

    def make_tree(target: Path) -> None:
        mount_tree(folder / "tree", target, backing=backing)

    def make_image(target: Path) -> None:
        mount_image(target, tree, folder / "objects", folder / "lazy")

    return [
        _Step(EROFS, tree, make_tree, False, f"mounts from {from_what}", None),
        _Step(DATA_LAYERS, image, make_image, True, "files are read through them", _LAYERS_HINT),
        _Step(ON_TOP, folder / "top", lambda target: _overlay_on(image, target), True, "works, as containers want it", _ON_TOP_HINT),
    ]


def _lay_out(folder: Path) -> None:
    for name in ("tree-mount", "image", "top", "objects", "lazy", "other"):
        (folder / name).mkdir()
    files = {}
    for number, (layer, content) in enumerate(zip(("objects", "lazy"), _CONTENT, strict=True)):
        digest = digest_of(content)
        files[b"%d" % number] = Inode(stat.S_IFREG | 0o444, size=len(content), object=digest)
        path = folder / layer / digest.hex()[:2] / digest.hex()[2:]
        path.parent.mkdir()
        path.write_bytes(content)
    (folder / "tree").write_bytes(write_tree(Inode(stat.S_IFDIR | 0o755, children=files)))


def _overlay_on(image: Path, target: Path) -> None:
    """Mount the plainest overlay that has ``image`` as a layer."""
    with explained("cannot mount an overlay on one of ours"):
        with setting_up(OVERLAY_TYPE) as context:
            # By names that need no escaping, in a way that every kernel has.
            syscalls.fsconfig_string(context, "lowerdir", b"%s:%s" % (os.fsencode(image), os.fsencode(image.with_name("other"))))
            syscalls.fsconfig_create(context)
            mount = syscalls.fsmount(context, MOUNT_ATTR_RDONLY)
        try:
            attach(mount, target)
        finally:
            os.close(mount)


def _check(target: Path) -> None:
    with explained(f"a file in {target} cannot be read"):
        for number, content in enumerate(_CONTENT):
            if (target / str(number)).read_bytes() != content:
                raise MountError("a file has other content than its object: the kernel has no attributes in EROFS, or does not follow them")


def _not_tried(*names: str) -> tuple[Feature, ...]:
    return tuple(Feature(name, False, "not tried", needed=name not in {ON_TOP, WATCHING}) for name in names)


# -- fs-verity ----------------------------------------------------------------------------------------------------------------------------


def _enable_verity(path: Path) -> Feature:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # It has to be closed for writing.
    try:
        syscalls.enable_verity(descriptor)
    except OSError as error:
        if error.errno not in {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EACCES}:
            raise
        hint = "tune2fs -O verity DEVICE for ext4, unmounted; btrfs has it from Linux 5.15 on"
        return Feature(VERITY, False, f"{path.parent}: {error.strerror}", hint, needed=False)
    finally:
        os.close(descriptor)
    return Feature(VERITY, True, f"{path.parent} has it", needed=False)
