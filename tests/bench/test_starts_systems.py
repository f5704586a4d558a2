"""Every system of the bench of starts starts a small program, cold and warm, through the link; and what fails is found to have failed.

Needs root, and of the peers what ``./dev bench starts`` installs: those that are missing are skipped.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.images import cache
from bench.images.cache import Image
from bench.starts import measure
from bench.starts.__main__ import every_system
from bench.starts.measure import Bench
from bench.starts.place import Link, Place, Prepared, place
from bench.starts.systems import Native
from bench.starts.workloads import Workload

pytestmark = pytest.mark.timeout(300)
FAST = Link(0.002, 400e6)
SOURCE = r"""
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {
  if (argc > 1) pause();
  unsigned long sum = 0, count = 0;
  for (int n = 0; n < 40; n++) {
    char name[40], buffer[4096];
    snprintf(name, sizeof name, "/opt/data/%d", n);
    FILE *file = fopen(name, "r");
    if (!file) { perror(name); return 1; }
    for (size_t got; (got = fread(buffer, 1, sizeof buffer, file)); count++)
      for (size_t at = 0; at < got; at++) sum = sum * 31 + (unsigned char)buffer[at];
    fclose(file);
  }
  printf("sum %lu %lu\n", count, sum);
}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, require: Callable[..., None]) -> Image:
    """A program that is linked statically, and 40 files for it."""
    require("root", "unpacks and mounts")
    folder = tmp_path_factory.mktemp("image")
    root = folder / "root"
    for name in ("dev", "proc", "tmp", "opt/data"):
        (root / name).mkdir(parents=True)
    (folder / "main.c").write_text(SOURCE)
    subprocess.run(["gcc", "-O1", "-static", "-o", root / "opt" / "main", folder / "main.c"], check=True)
    (root / "opt" / "run").symlink_to("main")
    for number in range(40):
        (root / "opt" / "data" / str(number)).write_bytes(os.urandom(1000 * number))
    layout = folder / "layout"
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:latest"], check=True)
    subprocess.run(["umoci", "insert", "--image", f"{layout}:latest", root, "/"], check=True, capture_output=True)
    return Image(folder / "none", layout, "latest")


@pytest.fixture(scope="module")
def workload(image: Image) -> Workload:
    return Workload("small", "a small one", lambda: image, ("/opt/run",), "sum ", python=False)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The servers, with prepared images in a place of their own; the peers are where they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(measure, "have_memory", lambda: None)
        with place() as found:
            yield found


TRIED = ("native", "imagefs-kernel-none", "imagefs-kernel-optimized", "imagefs-fuse-profile", "pull", "squashfs-rclone")
"""One of each kind: all of them take minutes."""


@pytest.mark.parametrize("name", TRIED)
def test_a_program_starts(where: Place, workload: Workload, name: str) -> None:
    system = next(system for system in every_system(where) if system.name == name)
    if reason := system.missing():
        pytest.skip(reason)
    bench = Bench(where, [system], runs=1)
    bench.measure(workload, FAST)
    cold, warm = bench.samples
    assert (cold.error, warm.error) == ("", "")
    assert (cold.warm, warm.warm) == (False, True)
    assert cold.seconds > cold.mounted > 0
    if system.kind == "native":
        assert cold.bytes == cold.requests == 0
    else:
        # All of its files are read, and do not compress.
        assert cold.bytes > 700_000
        assert cold.requests
        # Who keeps nothing may move it again, in blocks that may fall a little otherwise.
        assert warm.bytes <= 1.2 * cold.bytes
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(where.folder) in line]


class _Wrong(Native):
    """Gives a tree that lacks what was read before."""

    name = "wrong"

    def prepare(self, prepared: Prepared) -> None:
        (prepared.tree() / "opt" / "data" / "39").write_bytes(b"something else")


class _Missing(Native):
    name = "missing"

    def missing(self) -> str:
        return "not here"


def test_a_wrong_output_and_a_missing_system_are_told(where: Place, image: Image) -> None:
    workload = Workload("wrong", "one that will be wrong", lambda: image, ("/opt/run",), "sum ", python=False)
    bench = Bench(where, [_Wrong(where), _Missing(where)], runs=2)
    bench.measure(workload, FAST)
    assert [sample.error.partition(":")[0] for sample in bench.samples] == ["a wrong output"]
    assert bench.skipped == {"missing": "not here"}


def test_a_start_that_does_not_end_is_given_up(where: Place, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DEADLINE", 1.0)
    monkeypatch.setattr(measure, "_expected", lambda _: "")
    workload = Workload("late", "one that waits", lambda: image, ("/opt/run", "wait"), "", python=False)
    bench = Bench(where, [Native(where)], runs=3)
    bench.measure(workload, FAST)
    assert len(bench.samples) == 1
    assert "no end after 1 s" in bench.samples[0].error
    tree = str(Prepared(workload).tree())
    assert [process for process in Path("/proc").iterdir() if process.name.isdigit() and _root(process) == tree] == []


def _root(process: Path) -> str:
    try:
        return str((process / "root").readlink())
    except OSError:
        return ""
