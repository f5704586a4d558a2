"""What the command line says about prefetching reaches the daemon."""

from typing import Any

import pytest

from imagefs.daemon import client, mounting
from imagefs_cli.main import main

RESULT = {"mode": "fuse", "reason": "asked for"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def mount(config: object, **fields: Any) -> dict[str, Any]:
        del config
        found.update(fields)
        return RESULT

    monkeypatch.setattr(mounting, "mount", mount)
    return found


def run(*words: str) -> int:
    return main(["mount", *words])


@pytest.mark.parametrize(
    ("words", "prefetch", "wait"),
    [
        (["app:1", "/mnt"], True, 0.0),
        (["--no-prefetch", "app:1", "/mnt"], False, 0.0),
        (["--wait-prefetch", "app:1", "/mnt"], True, 1.0),
        (["app:1", "/mnt", "--wait-prefetch"], True, 1.0),
        (["--wait-prefetch=0.5", "app:1", "/mnt"], True, 0.5),
    ],
)
def test_what_is_asked_for_arrives(asked: dict[str, Any], words: list[str], prefetch: bool, wait: float) -> None:
    assert run(*words) == 0
    assert (asked["ref"], asked["mountpoint"]) == ("app:1", "/mnt")
    assert (asked["prefetch"], asked["wait"]) == (prefetch, wait)


@pytest.mark.parametrize("share", ["2", "-1", "all", ""])
def test_a_share_is_a_number_from_0_to_1(asked: dict[str, Any], share: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"--wait-prefetch={share}", "app:1", "/mnt") == 2
    assert "wait-prefetch" in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize(
    ("wait", "content", "said"),
    [(False, 0, "is coming"), (True, 0, "no profile"), (True, 5_000_000, "100% of 5.0 MB")],
)
def test_prefetch_says_what_is_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wait: bool, content: int, said: str
) -> None:
    monkeypatch.setattr(client, "prefetch", lambda _, **fields: {"profile_bytes": content, "prefetched": 1.0} | fields)
    assert main(["prefetch", "app:1", *(["--wait"] if wait else [])]) == 0
    assert said in capsys.readouterr().err
