"""What clones draw, module by module, in processes that are forked from one: as alike as clones are, and without an engine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snapshotstore import renewal

ROOT = Path(renewal.__file__).parents[1]

CLONES = """
import json, os, sys, types
sys.path.insert(0, sys.argv[1])
{begin}
from snapshotstore import renewal
for number in range(2):
    read, write = os.pipe()
    if os.fork() == 0:
        done = renewal.renew() if sys.argv[2] == "renewed" else []
        os.write(write, json.dumps([done, {draw}]).encode())
        os._exit(0)
    os.close(write)
    print(os.read(read, 65536).decode())
    os.wait()
"""


def drawn(begin: str, draw: str, how: str) -> list[Any]:
    """Return what two clones tell: which modules were renewed, and what they drew."""
    code = CLONES.replace("{begin}", begin).replace("{draw}", draw)
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), how], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


STAND_IN = """
class Drawn:
    def __init__(self): self.seeded = 1
    def seed(self, value): self.seeded = value
    manual_seed = seed
made = Drawn()
"""
"""For a library that need not be here: it has the same functions to seed it."""

MODULES = {
    "random": ("import random; random.seed(1)", "random.random()"),
    "uuid": ("import uuid; uuid.uuid1()", "[uuid.uuid1().node, uuid.uuid1().clock_seq]"),
    "numpy.random": (STAND_IN + "sys.modules['numpy.random'] = made", "made.seeded"),
    "torch": (STAND_IN + "sys.modules['torch'] = made", "made.seeded"),
}


@pytest.mark.parametrize("name", MODULES)
def test_clones_draw_the_same_unless_they_are_renewed(name: str) -> None:
    begin, draw = MODULES[name]
    (done, one), (_, two) = drawn(begin, draw, "as it was")
    assert done == []
    if name not in {"random", "uuid"}:  # which notice a fork, but no restore
        assert one == two
    (done, one), (_, two) = drawn(begin, draw, "renewed")
    assert name in done
    assert one != two


def test_what_is_not_imported_is_not_touched() -> None:
    (done, loaded), _ = drawn("", "sorted({'random', 'numpy.random', 'torch', 'ssl', 'uuid'} & sys.modules.keys())", "renewed")
    assert set(done) == set(loaded) & set(done)
    assert not {"numpy.random", "torch"} & set(done)


def test_hashes_and_what_was_computed_are_equal() -> None:
    begin = "import random; random.seed(3); computed = random.random()"
    (_, one), (_, two) = drawn(begin, "[hash('a'), computed, hash(('b', 2))]", "renewed")
    assert one == two


def test_a_library_that_is_otherwise_is_told_and_the_rest_is_renewed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "numpy.random", object())  # another version
    assert "random" in renewal.renew()
    assert "numpy.random was not renewed" in capsys.readouterr().err


def test_what_torch_knows_of_devices_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []

    class Count:
        def cache_clear(self) -> None:
            cleared.append(True)

    class Cuda:
        device_count = Count()
        _cached_device_count = 4

    class Torch:
        cuda = Cuda()

        def manual_seed(self, seed: int) -> None:
            assert 0 <= seed < 1 << 63

    made = Torch()
    monkeypatch.setitem(sys.modules, "torch", made)
    assert "torch" in renewal.renew()
    assert cleared
    assert made.cuda._cached_device_count is None
