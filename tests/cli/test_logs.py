"""``imagefs logs``: what replicas have printed."""

import json
import os
from pathlib import Path

import pytest

from imagefs_cli.main import main


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory with two logs, of which that of ``service`` is the older."""
    monkeypatch.setenv("IMAGEFS_RUNTIME", str(tmp_path / "run"))
    folder = tmp_path / "run" / "logs"
    folder.mkdir(parents=True)
    for age, (name, text) in enumerate((("other-2", "one\ntwo\nthree\n"), ("service-1", "\x1b[31mred\x1b[0m\n"))):
        (folder / f"{name}.log").write_text(text)
        os.utime(folder / f"{name}.log", (1_000_000_000 - age, 1_000_000_000 - age))
    return tmp_path / "run"


@pytest.mark.usefixtures("runtime")
def test_the_newest_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["LOG", "other-2", "service-1"]
    assert main(["logs", "--json"]) == 0
    assert [Path(row["log"]).name for row in json.loads(capsys.readouterr().out)["logs"]] == ["other-2.log", "service-1.log"]


@pytest.mark.usefixtures("runtime")
def test_one_is_shown_by_the_beginning_of_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "other", "--lines", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    assert main(["logs", "service", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "\x1b[31mred\x1b[0m\n"


@pytest.mark.usefixtures("runtime")
def test_what_a_program_printed_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "service"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.usefixtures("runtime")
def test_one_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "nothing"]) == 6
    assert "imagefs logs" in capsys.readouterr().err


def test_one_that_goes_meanwhile(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As that of a replica does which ends and has printed nothing: it is seen, and cannot be opened any more."""
    (runtime / "logs/gone-3.log").symlink_to("nowhere")
    assert main(["logs", "gone"]) == 6
    assert "there is no log gone" in capsys.readouterr().err
    assert main(["logs"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["LOG", "other-2", "service-1"]


def test_where_nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("IMAGEFS_RUNTIME", str(tmp_path / "none"))
    assert main(["logs"]) == 0
    assert "no logs" in capsys.readouterr().err
