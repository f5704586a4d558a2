"""Debian images of this machine's release: a base layer, then Python, then what an image is for. gzip layers, made by umoci."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from bench.images.apt import this_release
from bench.images.cache import Image, made, run, say

TAG = "latest"
_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"


def python() -> Image:
    """Give the image that the others start from: Debian (minbase) and its Python, two layers.

    It has no archive. A file ``python`` beside its layout names its Python (``python3.11``).
    """
    release = this_release()
    recipe = {"version": 1, "suite": release.suite, "machine": platform.machine(), "layers": ["minbase", "python3-minimal python3"]}

    def make(folder: Path) -> None:
        layout, bundle = folder / "layout", folder / "bundle"
        rootfs = bundle / "rootfs"
        run("umoci", "init", "--layout", layout)
        run("umoci", "new", "--image", f"{layout}:{TAG}")
        run("umoci", "unpack", "--image", f"{layout}:{TAG}", bundle)
        say(f"Debian {release.suite}: debootstrap (1 to 2 minutes)")
        _fast_dpkg(rootfs)
        run("debootstrap", "--variant=minbase", release.suite, rootfs, release.mirror)
        _tidy(rootfs)
        _repack(layout, bundle)
        say("Debian: python3")
        install(rootfs, "python3")
        _repack(layout, bundle)
        (folder / "python").write_text((rootfs / "usr/bin/python3").readlink().name)
        shutil.rmtree(bundle)

    folder = made("debian-python", recipe, make)
    return Image(folder / "archive.tar", folder / "layout", TAG)


def numpy() -> Image:
    """Give the demonstration's image: Debian, Python, and NumPy from Debian, three layers."""
    base = python()
    recipe = {"version": 1, "base": base.layout.parent.name, "packages": "python3-numpy"}

    def make(folder: Path) -> None:
        layout, bundle = folder / "layout", folder / "bundle"
        copy_layout(base.layout, layout)
        run("umoci", "unpack", "--image", f"{layout}:{TAG}", bundle)
        say("Debian: python3-numpy")
        install(bundle / "rootfs", "python3-numpy")
        _repack(layout, bundle)
        run("umoci", "config", "--image", f"{layout}:{TAG}", "--config.cmd", "python3")
        shutil.rmtree(bundle)
        archive(layout, TAG, folder / "archive.tar")

    folder = made("debian-numpy", recipe, make)
    return Image(folder / "archive.tar", folder / "layout", TAG)


def copy_layout(source: Path, target: Path) -> None:
    """Copy an OCI layout; blobs, which never change, are hard links."""
    shutil.copytree(source, target, copy_function=_link_blobs)


def _link_blobs(source: str, target: str) -> None:
    if "/blobs/" in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def archive(layout: Path, tag: str, target: Path) -> None:
    """Write one image of a layout as an OCI archive; what it names its image is ``latest``."""
    run("skopeo", "copy", "--insecure-policy", "--quiet", f"oci:{layout}:{tag}", f"oci-archive:{target}:{TAG}")


def install(rootfs: Path, *packages: str) -> None:
    """Install Debian packages in a root file system, without what they recommend, and leave no package lists behind."""
    _fast_dpkg(rootfs)
    settings = rootfs / "tmp" / "apt.conf"
    _apt_settings(settings)
    environment = ("env", "-i", _PATH, "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", f"APT_CONFIG=/tmp/{settings.name}")
    apt = ("chroot", rootfs, *environment, "apt-get", "-q", "-y")
    run(*apt, "update")
    run(*apt, "install", "--no-install-recommends", *packages)
    settings.unlink()
    _tidy(rootfs)


def _apt_settings(target: Path) -> None:
    """Let apt in the chroot reach the mirror as this machine does: through its proxy, if it has one."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    target.write_text("".join(f"{line}\n" for line in dump.splitlines() if line.startswith("Acquire::") and "::Proxy" in line))


def _fast_dpkg(rootfs: Path) -> None:
    """Spare dpkg its fsync a file: a root file system that is lost half way is thrown away anyway."""
    folder = rootfs / "etc" / "dpkg" / "dpkg.cfg.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unsafe-io").write_text("force-unsafe-io\n")


def _tidy(rootfs: Path) -> None:
    (rootfs / "etc" / "dpkg" / "dpkg.cfg.d" / "unsafe-io").unlink(missing_ok=True)
    for folder in ("var/lib/apt/lists", "var/cache/apt", "var/log", "tmp"):
        for entry in (rootfs / folder).iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _repack(layout: Path, bundle: Path) -> None:
    run("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:{TAG}", bundle)
