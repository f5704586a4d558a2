"""What is started: each workload is an image, a program in it, and what a right output begins with."""

from collections.abc import Callable
from dataclasses import dataclass

from bench import images
from bench.images.starts import PROGRAMS

_PYTHON = ("python3", "-B")


@dataclass(frozen=True, slots=True)
class Workload:
    """A program in an image.

    ``output`` is how its output begins; the rest must be what it prints on ext4. ``python`` tells that files compiled from source
    are part of it, which a file system without the sources' times of change has to be prepared for.
    """

    name: str
    title: str
    image: Callable[[], images.Image]
    command: tuple[str, ...]
    output: str
    python: bool = True


WORKLOADS = {
    one.name: one
    for one in (
        Workload("torch", "`import torch`", images.torch, (*_PYTHON, "-c", "import torch; print('torch', torch.__version__)"), "torch 2."),
        Workload(
            "transformers",
            "transformers: two small models built and run",
            images.transformers,
            (*_PYTHON, f"{PROGRAMS}/main.py"),
            "logits (1, 16, 128)",
        ),
        Workload("storm", "Python import storm, some 3,000 modules", images.storm, (*_PYTHON, f"{PROGRAMS}/main.py"), "modules "),
        Workload("weights", "mmap of 420 MB of safetensors", images.weights, (*_PYTHON, f"{PROGRAMS}/main.py"), "tensors 200 "),
        Workload("libraries", "C++ with 200 shared libraries", images.libraries, (f"{PROGRAMS}/main",), "libraries 200 ", python=False),
        Workload("node", "Node.js, 2,000 of 20,000 files", images.node, ("node", f"{PROGRAMS}/main.js"), "modules 1", python=False),
        Workload(
            "readers", "256 readers at random in 512 MB", images.readers, (*_PYTHON, f"{PROGRAMS}/main.py"), "readers 256 ", python=False
        ),
    )
}

STRANGER = ("sh", "-c", "find /usr/share /etc /var/lib -type f | head -n 2000 | xargs cat | wc -c")
"""A program that reads nothing of what any workload needs: what is recorded of it helps nobody."""
