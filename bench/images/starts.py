"""The images of the bench of starts: a program each, and what it starts from. All have Debian and Python below.

None has an archive (their layouts are what is converted, pulled and unpacked); the programs print what tells whether they read right.
"""

import random
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.images import generated
from bench.images.cache import Image, made, run, say
from bench.images.debian import TAG, copy_layout, install, numpy, python
from bench.images.torch import need_same_python, torch

PROGRAMS = "/opt/program"
"""Where the images have their program."""

STORM = ("numpy==2.4.6", "sympy==1.14.0", "networkx==3.6.1", "sqlalchemy==2.1.9", "pygments==2.21.0", "docutils==0.23", "babel==2.19.0")
TRANSFORMERS = ("transformers==5.24.0",)
LIBRARIES = 200
_BLOB = 256 << 10
_DATA_FILES = 256
_DATA_SIZE = 2 << 20
_WEIGHTS = 400

_STORM_PROGRAM = """
import hashlib, importlib, pkgutil, sys, warnings
warnings.simplefilter("ignore")
wanted = ["numpy", "sympy", "networkx", "sqlalchemy", "docutils.core", "babel.core"]
wanted += ["pygments.lexers", "sympy", "networkx.algorithms", "sqlalchemy.dialects", "docutils.parsers", "babel.messages"]
for name in wanted:
    importlib.import_module(name)
for top in wanted[6:]:
    package = importlib.import_module(top)
    for found in pkgutil.walk_packages(package.__path__, top + "."):
        # Some do things, or print, when they are imported.
        if any(word in found.name for word in ("test", "benchmark", "__main__", "setuptools", "interactive", "deprecated", ".this")):
            continue
        try:
            importlib.import_module(found.name)
        except ImportError:
            pass
tops = {name.partition(".")[0] for name in wanted} - {"numpy"}
names = sorted(name for name in sys.modules if name.partition(".")[0] in tops)
print("modules", len(names), hashlib.sha256(" ".join(names).encode()).hexdigest()[:16])
"""

_TRANSFORMERS_PROGRAM = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, BertConfig, BertModel, pipeline
torch.manual_seed(0)
config = LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
tokens = LlamaForCausalLM(config).eval()(torch.arange(16).reshape(1, 16)).logits
bert = BertModel(BertConfig(vocab_size=128, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)).eval()
print("logits", tuple(tokens.shape), "hidden", tuple(bert(torch.arange(16).reshape(1, 16)).last_hidden_state.shape), pipeline.__name__)
"""

_WEIGHTS_MAKER = f"""
import json, numpy, struct
chance = numpy.random.default_rng(6)
shape = (1024, 1024)
entries, at = {{}}, 0
for layer in range({_WEIGHTS} // 2):
    entries[f"layers.{{layer}}.weight"] = {{"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * shape[0] * shape[1]]}}
    at += 2 * shape[0] * shape[1]
head = json.dumps(entries).encode()
head += b" " * (-len(head) % 8)
with open("/model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(head)) + head)
    for _ in entries:
        weights = chance.standard_normal(shape, dtype=numpy.float32) * numpy.float32(0.02)
        file.write((weights.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes())
"""

_WEIGHTS_PROGRAM = """
import json, mmap, numpy, struct
with open("/opt/program/model.safetensors", "rb") as file:
    data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
size = struct.unpack("<Q", data[:8])[0]
total = 0
entries = json.loads(data[8 : 8 + size])
for name, entry in entries.items():
    start, end = entry["data_offsets"]
    tensor = numpy.frombuffer(data, dtype=numpy.uint16, count=(end - start) // 2, offset=8 + size + start)
    total += int(tensor.sum(dtype=numpy.uint64))
print("tensors", len(entries), "total", total)
"""

_READERS_PROGRAM = f"""
import os, random, threading, zlib
files = [os.path.join(top, name) for top, _, names in sorted(os.walk("/opt/program/data")) for name in sorted(names)]
sums = [0] * 256
def reader(number):
    chance = random.Random(number)
    for _ in range(8):
        descriptor = os.open(files[chance.randrange(len(files))], os.O_RDONLY)
        data = os.pread(descriptor, 65536, chance.randrange({_DATA_SIZE} // 65536) * 65536)
        os.close(descriptor)
        assert len(data) == 65536
        sums[number] += zlib.crc32(data)
threads = [threading.Thread(target=reader, args=(number,)) for number in range(len(sums))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("readers", len(sums), "total", sum(sums))
"""


def storm() -> Image:
    """Give the image of many small Python modules: seven packages that import some three thousand of them."""

    def fill(folder: Path, program: Path) -> None:
        say("import storm: pip install")
        _pip(folder / "packages", *STORM)
        (program / "main.py").write_text(_STORM_PROGRAM)

    return _layered("starts-storm", python(), [STORM, _STORM_PROGRAM], fill)


def transformers() -> Image:
    """Give the PyTorch image with ``transformers`` in one more layer."""
    base = torch()

    def fill(folder: Path, program: Path) -> None:
        say("transformers: pip install")
        _pip(folder / "packages", *TRANSFORMERS)
        # The image below has it, and one of two versions would be half there.
        for found in (folder / "packages").glob("numpy*"):
            shutil.rmtree(found)
        (program / "main.py").write_text(_TRANSFORMERS_PROGRAM)

    return _layered("starts-transformers", base, [TRANSFORMERS, _TRANSFORMERS_PROGRAM], fill)


def weights() -> Image:
    """Give the image with a safetensors file of 200 tensors, 420 MB of normally distributed bfloat16, and NumPy to read it with."""
    base = numpy()

    def fill(folder: Path, program: Path) -> None:
        say("weights: making a safetensors file")
        run("umoci", "raw", "unpack", "--image", f"{base.layout}:{base.tag}", folder / "root")
        (folder / "root" / "make.py").write_text(_WEIGHTS_MAKER)
        run("chroot", folder / "root", "python3", "/make.py")
        shutil.move(folder / "root" / "model.safetensors", program / "model.safetensors")
        shutil.rmtree(folder / "root")
        (program / "main.py").write_text(_WEIGHTS_PROGRAM)

    return _layered("starts-weights", base, [_WEIGHTS_MAKER, _WEIGHTS_PROGRAM], fill)


def libraries() -> Image:
    """Give the image of a C++ program with 200 shared libraries of some 300 KB each."""
    sources = [generated.library_source(number, "blob") for number in range(LIBRARIES)]

    def fill(folder: Path, program: Path) -> None:
        say(f"C++: compiling {LIBRARIES} libraries (1 to 2 minutes)")
        build = folder / "build"
        build.mkdir()
        (program / "lib").mkdir()

        def compile_one(number: int) -> None:
            blob, source = build / f"{number}.bin", build / f"{number}.cc"
            blob.write_bytes(generated.halves(random.Random(number), _BLOB))
            source.write_text(generated.library_source(number, str(blob)))
            run("g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-o", program / "lib" / f"library{number}.so", source)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(compile_one, range(LIBRARIES)))
        (build / "main.cc").write_text(generated.libraries_main(LIBRARIES))
        linked = [f"-l:library{number}.so" for number in range(LIBRARIES)]
        run("g++", "-O1", "-o", program / "main", build / "main.cc", f"-L{program}/lib", f"-Wl,-rpath,{PROGRAMS}/lib", *linked)
        shutil.rmtree(build)

    return _layered("starts-libraries", python(), [sources, LIBRARIES, _BLOB], fill)


def node() -> Image:
    """Give the image with Node.js from Debian and a ``node_modules`` of 20,000 files, of which the program requires some 2,000."""
    base = _nodejs()

    def fill(_: Path, program: Path) -> None:
        generated.node_modules(program / "node_modules")
        (program / "main.js").write_text(generated.node_program())

    return _layered("starts-node", base, [generated.FILES, generated.PACKAGES, generated.REQUIRED, 1], fill)


def readers() -> Image:
    """Give the image of 256 files of 2 MiB, and a program of 256 threads that read of them at random."""

    def fill(_: Path, program: Path) -> None:
        generated.data_files(program / "data", _DATA_FILES, _DATA_SIZE)
        (program / "main.py").write_text(_READERS_PROGRAM)

    return _layered("starts-readers", python(), [_DATA_FILES, _DATA_SIZE, _READERS_PROGRAM], fill)


def _nodejs() -> Image:
    base = python()

    def make(folder: Path) -> None:
        layout, bundle = folder / "layout", folder / "bundle"
        copy_layout(base.layout, layout)
        run("umoci", "unpack", "--image", f"{layout}:{TAG}", bundle)
        say("Debian: nodejs")
        install(bundle / "rootfs", "nodejs")
        run("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:{TAG}", bundle)
        shutil.rmtree(bundle)

    folder = made("debian-nodejs", {"version": 1, "base": base.layout.parent.name}, make)
    return Image(folder / "archive.tar", folder / "layout", TAG)


def _layered(name: str, base: Image, recipe: object, fill: Callable[[Path, Path], None]) -> Image:
    """Give ``base`` with what ``fill(folder, program)`` writes: ``program`` becomes :data:`PROGRAMS`, ``folder/packages`` Python's."""

    def make(folder: Path) -> None:
        layout, program, packages = folder / "layout", folder / "program", folder / "packages"
        program.mkdir()
        fill(folder, program)
        copy_layout(base.layout, layout)
        insert = ("umoci", "insert", "--image", f"{layout}:{base.tag}", "--tag", base.tag)
        if packages.exists():
            run(*insert, packages, f"/usr/local/lib/{need_same_python()}/dist-packages")
            shutil.rmtree(packages)
        run(*insert, program, PROGRAMS)
        shutil.rmtree(program)

    folder = made(name, {"version": 1, "base": base.layout.parent.name, "tag": base.tag, "recipe": recipe}, make)
    return Image(folder / "archive.tar", folder / "layout", base.tag)


def _pip(target: Path, *packages: str) -> None:
    need_same_python()
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--target", target, *packages)
