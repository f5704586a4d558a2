"""A PyTorch image (CPU), 1.3 GB unpacked: Debian, Python, and PyTorch with its usual company, three gzip layers; and two near copies.

The near copies differ in the same few files: ``torch_new_layer`` has them in a fourth layer, ``torch_new_content`` in a third
layer that was made anew, which is what a rebuild of the image gives. All three share one OCI layout.
"""

import shutil
import sys
from pathlib import Path

from bench.images.cache import Image, MakeError, made, run, say
from bench.images.debian import TAG, archive, copy_layout, python

# What a machine-learning image has beside torch; without it, torch warns that NumPy is missing.
PACKAGES = ("torch==2.13.0", "numpy==2.4.6", "scipy==1.17.1", "pandas==3.1.1", "scikit-learn==1.9.1", "pillow==13.0.0")
LARGE_BYTES = 350_000_000
_CHANGED = ("torch/version.py", "torch/nn/functional.py", "torch/optim/adam.py", "torch/utils/data/dataloader.py", "pandas/core/frame.py")


def torch() -> Image:
    """Give the PyTorch image."""
    return _image("torch")


def torch_new_layer() -> Image:
    """Give the PyTorch image with a few files changed in one more layer."""
    return _image("torch-new-layer")


def torch_new_content() -> Image:
    """Give the PyTorch image with a few files changed and its third layer made anew."""
    return _image("torch-new-content")


def large_file(target: Path) -> int:
    """Put one large file of real content (the start of PyTorch's main library) at ``target``; gives its size in bytes."""
    shutil.copyfile(_folder() / "large", target)
    return LARGE_BYTES


def _image(tag: str) -> Image:
    folder = _folder()
    return Image(folder / f"{tag}.tar", folder / "layout", tag)


def _folder() -> Path:
    base = python()
    recipe = {"version": 1, "base": base.layout.parent.name, "packages": PACKAGES, "changed": _CHANGED, "large": LARGE_BYTES}
    return made("debian-torch", recipe, lambda folder: _make(base, folder))


def _make(base: Image, folder: Path) -> None:
    inside = f"/usr/local/lib/{need_same_python()}/dist-packages"
    layout, packages = folder / "layout", folder / "packages"
    copy_layout(base.layout, layout)
    say("PyTorch: pip install (1 to 2 minutes)")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--target", packages, *PACKAGES)
    version = (packages / "torch" / "version.py").read_text()
    if "+cpu" not in version:
        raise MakeError("pip found a torch that is not a CPU build: give pip an index or a --find-links folder (PIP_FIND_LINKS) with one")
    with (packages / "torch" / "lib" / "libtorch_cpu.so").open("rb") as library, (folder / "large").open("wb") as large:
        large.write(library.read(LARGE_BYTES))
    say("PyTorch: layers")
    insert = ("umoci", "insert", "--image")
    run(*insert, f"{layout}:{TAG}", "--tag", "torch", packages, inside)
    changed = folder / "changed"
    for name in _CHANGED:
        file = packages / name
        with file.open("a") as text:
            text.write("\n# One line more than the release has.\n")
        (changed / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, changed / name)
    run(*insert, f"{layout}:torch", "--tag", "torch-new-layer", changed, inside)
    run(*insert, f"{layout}:{TAG}", "--tag", "torch-new-content", packages, inside)
    for tag in ("torch", "torch-new-layer", "torch-new-content"):
        archive(layout, tag, folder / f"{tag}.tar")
    shutil.rmtree(packages)
    shutil.rmtree(changed)


def need_same_python() -> str:
    """Give the Python (``python3.N``) that both the image and this environment have: pip installs for the one that runs it."""
    ours = f"python{sys.version_info.major}.{sys.version_info.minor}"
    theirs = (python().layout.parent / "python").read_text()
    if ours != theirs:
        raise MakeError(f"the image has {theirs} and this environment {ours}: make .venv with {theirs}")
    return ours
