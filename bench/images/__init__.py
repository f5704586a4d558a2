"""The container images that the benches and the demonstration use, made on this machine from Debian's and PyPI's packages.

Each function gives an image that is complete, and makes it first where it is missing: minutes the first time, nothing later.
Making one needs root (debootstrap, chroot). What is made is kept under the development cache, keyed by its recipe.
"""

from bench.images.cache import CACHE, Image
from bench.images.debian import numpy, python
from bench.images.starts import libraries, node, readers, storm, transformers, weights
from bench.images.torch import large_file, torch, torch_new_content, torch_new_layer

__all__ = [
    "CACHE",
    "Image",
    "large_file",
    "libraries",
    "node",
    "numpy",
    "python",
    "readers",
    "storm",
    "torch",
    "torch_new_content",
    "torch_new_layer",
    "transformers",
    "weights",
]
