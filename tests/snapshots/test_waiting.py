"""Keepers that wait: what they are told they have whole, and what is told nothing does not stay."""

import os
import select
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from snapshotstore.checkpoint.waiting import Spare, Waiting

_KEEPER = """
import os, sys
from snapshotstore.checkpoint.told import told
found = told(int(sys.argv[1]))
if found is not None:
    request, (answer,) = found
    os.write(answer, b"%d %d %s" % (os.get_inheritable(answer), len(request), request[-3:]))
"""

_OWNER = """
import time
from snapshotstore.checkpoint.waiting import Waiting
waiting = Waiting("keeper")
print(waiting.process.pid, flush=True)
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keeper.py").write_text(_KEEPER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")


def answered(waiting: Waiting, request: bytes) -> bytes:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        waiting.tell(request, writer)
        os.close(writer)
        return file.read()


def test_what_it_is_told_it_has_whole_and_hands_to_nobody() -> None:
    with closing(Waiting("keeper")) as waiting:
        assert answered(waiting, b"x" * 3_000_000 + b"end") == b"0 3000003 end"
    assert waiting.process.returncode == 0


def test_one_that_is_told_nothing_ends_when_it_is_closed() -> None:
    waiting = Waiting("keeper")
    waiting.close()
    assert waiting.process.returncode == 0


def test_one_that_is_told_nothing_ends_with_who_began_it() -> None:
    with subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        process = os.pidfd_open(int(owner.stdout.readline()))
        owner.kill()
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        assert poll.poll(30_000), "it goes on"
    finally:
        os.close(process)


def test_why_it_ended_is_said() -> None:
    with closing(Waiting("nonesuch")) as waiting:
        waiting.process.wait()
        assert answered(waiting, b"") == b""
        assert "No module named nonesuch" in waiting.said


def test_the_spare_one_is_used_once_and_only_while_it_lives() -> None:
    spare = Spare("keeper")
    with closing(spare):
        spare.prepare()
        spare.prepare()
        with closing(spare.take()) as first, closing(spare.take()) as second:
            assert answered(first, b"one") == answered(second, b"one") == b"0 3 one"
        spare.prepare()
        ended = spare._waiting
        assert ended is not None
        ended.process.kill()
        ended.process.wait()
        with closing(spare.take()) as another:
            assert another is not ended
            assert answered(another, b"two") == b"0 3 two"
        spare.prepare()
        left = spare._waiting
    assert left is not None
    assert left.process.returncode is not None
