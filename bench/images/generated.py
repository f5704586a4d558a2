"""Content that images are filled with where no package gives it: generated, the same on every machine for the same arguments.

Nothing here runs a command or knows of images; a function writes one tree and returns.
"""

import random
from pathlib import Path

_TEXT = """
able after again among around asset before begin between bound branch buffer build cache call change check close code column compare
content copy count create cursor data decode default delete depth detail device digest encode entry error event expect extent field
file filter first flush format frame front group handle header index input insert invalid item join kernel layer length level limit
list local lookup manifest mark match merge method module mount name node number object offset open option order output owner pack
page parent parse path point prefix process query queue range read record region remove report request result return root scan
search second select send sequence server session share shift size slice sort source stage start state status store stream string
table target task thread token total trace tree type unique update value vector verify version view wait watch weight window word
write zone
"""
_WORDS = _TEXT.split()

PACKAGES = 500
"""Packages of :func:`node_modules`; of :data:`FILES` files together."""

FILES = 20_000
REQUIRED = 150
"""So many of them are required by the program, each with what its index requires."""

_PARTS = 12


def prose(chance: random.Random, words: int) -> str:
    """Give so many words in lines of ten: text that compresses as text does."""
    picked = chance.choices(_WORDS, k=words)
    return "\n".join(" ".join(picked[at : at + 10]) for at in range(0, words, 10))


def node_modules(target: Path) -> None:
    """Write a ``node_modules`` of 500 packages of 40 files each: an index that requires 12 parts, and what packages carry beside code."""
    each = FILES // PACKAGES
    for number in range(PACKAGES):
        chance = random.Random(number)
        package = target / f"package-{number:03}"
        (package / "lib").mkdir(parents=True)
        (package / "docs").mkdir()
        (package / "package.json").write_text(f'{{"name": "package-{number:03}", "version": "1.{number}.0", "main": "index.js"}}\n')
        parts = "".join(f"total += require('./lib/part{part}.js').value;\n" for part in range(_PARTS))
        (package / "index.js").write_text(f"'use strict';\nlet total = 0;\n{parts}module.exports = {{ total }};\n")
        (package / "README.md").write_text(f"# package-{number:03}\n\n{prose(chance, 300)}\n")
        for part in range(each - 3):
            if part < 2 * _PARTS:
                comment = prose(chance, 150).replace("\n", "\n// ")
                text = f"'use strict';\n// {comment}\nexports.value = {chance.randrange(1000)};\n"
                (package / "lib" / f"part{part}.js").write_text(text)
            else:
                (package / "docs" / f"page{part}.md").write_text(f"{prose(chance, 400)}\n")


def node_program() -> str:
    """Give the program that requires the first :data:`REQUIRED` packages and prints a sum over them."""
    return (
        "'use strict';\nlet total = 0;\n"
        f"for (let n = 0; n < {REQUIRED}; n++) total += require('package-' + String(n).padStart(3, '0')).total;\n"
        "console.log('modules', Object.keys(require.cache).length, 'total', total);\n"
    )


_STEP = "virtual std::uint64_t step(std::uint64_t)"


def library_source(number: int, blob: str) -> str:
    """Give the C++ of one library: classes with virtual functions, a constructor that runs at load time, and a table of ``blob``'s bytes.

    The virtual functions' tables are what a dynamic linker has to relocate, in every library, before ``main`` is called.
    """
    chance = random.Random(number)
    lines = [
        "#include <cstdint>",
        "#include <string>",
        f'__asm__(".section .rodata\\n.balign 4096\\ntable{number}: .incbin \\"{blob}\\"\\n.previous\\n");',
        f'extern const unsigned char table[] __asm__("table{number}");',
        "namespace {",
        f"struct Base {{ virtual ~Base() = default; {_STEP} const = 0; virtual const char *name() const = 0; }};",
    ]
    classes = 40
    for one in range(classes):
        a, b, shift = chance.randrange(1, 1 << 31, 2), chance.randrange(1 << 31), chance.randrange(5, 27)
        lines.append(
            f"struct C{one} : Base {{ std::uint64_t step(std::uint64_t x) const override {{ for (int i = 0; i < {one % 7 + 2}; i++) "
            f"x = (x ^ (x >> {shift})) * {a}u + {b}u; return x; }} "
            f'const char *name() const override {{ return "{prose(chance, 20).replace(chr(10), " ")}"; }} }};'
        )
    lines.append("struct Registry { std::string names; std::uint64_t state = 1; Registry() {")
    lines += [f"  {{ C{one} c; names += c.name()[{one % 9}]; state = c.step(state); }}" for one in range(classes)]
    lines += [
        "} } registry;",
        "}",
        f'extern "C" std::uint64_t library{number}(std::uint64_t x) {{',
        "  for (std::uint64_t at = x % 64; at < 65536; at += 4096) x = x * 31 + table[at];",
        "  return x + registry.state + registry.names.size();",
        "}",
    ]
    return "\n".join(lines) + "\n"


def libraries_main(count: int) -> str:
    """Give the C++ of the program that calls every library once and prints what came of it."""
    declared = "\n".join(f'extern "C" std::uint64_t library{number}(std::uint64_t);' for number in range(count))
    called = "\n".join(f"  x = library{number}(x);" for number in range(count))
    return (
        f"#include <cstdint>\n#include <cstdio>\n{declared}\nint main() {{\n  std::uint64_t x = 1;\n{called}\n"
        f'  std::printf("libraries {count} total %llu\\n", static_cast<unsigned long long>(x));\n}}\n'
    )


def halves(chance: random.Random, size: int) -> bytes:
    """Give ``size`` bytes that compress to about half: each is one of sixteen values, in no order."""
    return chance.randbytes(size).translate(_SIXTEEN)


_SIXTEEN = bytes(random.Random(16).sample(range(256), 16)[byte % 16] for byte in range(256))


def data_files(target: Path, files: int, size: int) -> None:
    """Write ``files`` files of ``size`` bytes of :func:`halves`, 16 to a folder."""
    for number in range(files):
        folder = target / f"{number // 16:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03}.bin").write_bytes(halves(random.Random(number), size))
