"""How long a crash loop waits, and what it remembers."""

import json
import random
from pathlib import Path

from imagefs.daemon.crashes import CALM_SECONDS, PAUSES, PRICE_SECONDS, Crashes


def _note(crashes: Crashes, how: str = "it ended with status 1", *, served: float = 0.0) -> float:
    return crashes.note(how, pid=7, error=None, served=served)


def test_pauses_grow_to_the_last_while_nothing_is_served(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path / "crash.json", None)
    assert [_note(crashes) for _ in range(len(PAUSES) + 2)] == [*PAUSES, PAUSES[-1], PAUSES[-1]]


def test_a_worker_that_served_is_followed_at_once_however_often(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path / "crash.json", None)
    whims = random.Random(1)
    # A thousand in ten minutes, some of them soon after one another.
    pauses = sorted(_note(crashes, served=whims.uniform(0.0, 1.2)) for _ in range(1000))
    assert (pauses[989], pauses[-1] <= PAUSES[1]) == (0, True)


def test_what_is_served_pays_for_deaths(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path / "crash.json", None)
    assert [_note(crashes) for _ in range(4)] == list(PAUSES[:4])
    assert _note(crashes, served=2 * PRICE_SECONDS) == PAUSES[2]
    assert _note(crashes, served=20 * PRICE_SECONDS) == 0
    # Half of the price each time: every second death makes it worse, to the last pause.
    pauses = [_note(crashes, served=PRICE_SECONDS / 2) for _ in range(2 * len(PAUSES))]
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSES[-1]


def test_the_first_crash_of_a_series_is_kept_with_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    log.write_bytes(b"x" * 10_000 + b"\xff last words")
    crashes = Crashes(tmp_path / "crash.json", log, wall=lambda: 5.0)
    _note(crashes, "first")
    log.write_bytes(b"other words")
    _note(crashes, "second")
    assert crashes.first is not None
    assert crashes.first | {"log": ""} == {"at": 5.0, "worker_pid": 7, "how": "first", "error": None, "log": ""}
    assert crashes.first["log"].endswith("xxx\ufffd last words")
    assert len(crashes.first["log"]) <= 4000
    assert json.loads((tmp_path / "crash.json").read_text()) == crashes.first
    _note(crashes, "third", served=CALM_SECONDS - 1)
    assert crashes.first["how"] == "first"
    _note(crashes, "another time", served=CALM_SECONDS)
    assert json.loads((tmp_path / "crash.json").read_text())["how"] == "another time"


def test_what_an_earlier_daemon_left_is_not_this_ones(tmp_path: Path) -> None:
    (tmp_path / "crash.json").write_text("old")
    assert Crashes(tmp_path / "crash.json", None).first is None
    assert not (tmp_path / "crash.json").exists()


def test_a_full_disk_does_not_keep_a_worker_from_being_started(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path / "gone" / "crash.json", tmp_path / "gone" / "log")
    assert _note(crashes) == 0
    assert crashes.first is not None
