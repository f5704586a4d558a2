"""Which of the kernel's files says how often a process was killed for want of memory."""

from pathlib import Path

import pytest

from imagefs.daemon import oom


@pytest.mark.parametrize(
    ("own", "file", "text"),
    [
        ("0::/a/b\n", "a/b/memory.events", "low 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 1\n"),
        ("1:name=systemd:/a\n0::/a\n", "unified/a/memory.events", "oom_kill 3\n"),
        ("0::/\n", "memory.events", "oom_kill 3\n"),
        ("5:cpu,memory:/a:b\n0::/\n", "memory/a:b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
    ],
)
def test_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, file: str, text: str) -> None:
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(oom, "_OWN", tmp_path / "own")
    monkeypatch.setattr(oom, "_CGROUPS", tmp_path / "cgroups")
    assert oom.oom_kills() is None
    (tmp_path / "cgroups" / file).parent.mkdir(parents=True)
    (tmp_path / "cgroups" / file).write_text(text)
    assert oom.oom_kills() == 3


@pytest.mark.parametrize("text", ["", "oom_kill", "oom_kill many", "oom_kill_disable 0\n", "\xff"])
def test_what_makes_no_sense_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "memory.events").write_bytes(text.encode("latin-1"))
    monkeypatch.setattr(oom, "_OWN", tmp_path / "own")
    monkeypatch.setattr(oom, "_CGROUPS", tmp_path)
    assert oom.oom_kills() is None
    monkeypatch.setattr(oom, "_OWN", tmp_path / "none")
    assert oom.oom_kills() is None
