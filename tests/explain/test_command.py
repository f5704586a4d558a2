"""``imagefs explain``: which start is meant, in which form it is shown, and what is said where there is none."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagefs import errors
from imagefs.format.start import compressed, decode
from imagefs_cli.main import main
from tests.explain.documents import FULL, document
from tests.explain.trace_format import Trace

Run = Callable[..., tuple[int, str, str]]
OLD, NEW = "1" * 64, "2" * 64


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command with a cache of its own; return its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        place = [f"--{name}={tmp_path}/{name}" for name in ("store", "cache", "runtime")]
        code = main(["explain", *arguments, *place])
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


def keep(folder: Path, began: int, **more: Any) -> Path:
    """Have a document lie where the daemon keeps them."""
    starts = folder / "cache/starts"
    starts.mkdir(parents=True, exist_ok=True)
    made = document(300, seed=began, began=began / 1000, **more)
    path = starts / f"{made['manifest']}-{began}.json.zst"
    path.write_bytes(compressed(json.dumps(made).encode()))
    return path


def test_the_last_start_of_an_image_is_shown(tmp_path: Path, run: Run) -> None:
    keep(tmp_path, 1000)
    keep(tmp_path, 9000, profile=FULL)
    keep(tmp_path, 5000)
    keep(tmp_path, 9999, ref="other:1", manifest=OLD)
    for target in ("torch:2.9", "5a5a5a5a", "5a" * 32, "torch@" + "5a" * 32):
        code, out, _ = run(target, "--json")
        assert code == 0
        assert json.loads(out)["began"] == 9
    assert json.loads(run("torch:2.9", "--json", "--start", "3")[1])["began"] == 1
    code, out, _ = run("torch:2.9")
    assert code == 0
    assert out.startswith("torch:2.9 at /mnt/torch, kernel mode")
    assert all(len(line) <= 100 for line in out.splitlines())


def test_a_start_by_where_it_was_mounted(tmp_path: Path, run: Run) -> None:
    keep(tmp_path, 1000, mountpoint=f"{tmp_path}/mnt")
    keep(tmp_path, 2000)
    (tmp_path / "mnt").mkdir()
    assert json.loads(run(str(tmp_path / "mnt"), "--json")[1])["began"] == 1
    (tmp_path / "mnt").rmdir()
    assert json.loads(run(str(tmp_path / "mnt"), "--json")[1])["began"] == 1


def test_a_document_goes_out_and_comes_back(tmp_path: Path, run: Run) -> None:
    kept = keep(tmp_path, 1000)
    file = tmp_path / "start.json"
    code, out, _ = run("torch:2.9", "--export", str(file))
    assert (code, out) == (0, "")
    assert decode(file.read_bytes()) == decode(kept.read_bytes())
    before = run("torch:2.9", "--json")[1]
    kept.unlink()
    assert run(str(file), "--json")[1] == before
    (tmp_path / "start.json.zst").write_bytes(compressed(file.read_bytes()))
    assert run(str(tmp_path / "start.json.zst"), "--json")[1] == before


def test_other_forms(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, 1000)
    keep(tmp_path, 2000)
    seen: list[Any] = []

    def page(made: dict[str, Any], other: dict[str, Any] | None = None) -> str:
        seen.append((made["began"], other and other["began"]))
        assert made["sentence"].endswith(".")
        assert sum(end - begin for begin, end, read in made["path"] if made["reads"][read][5] == 3) > 100_000
        return "<html>"

    monkeypatch.setitem(sys.modules, "imagefs_cli.explain_page", SimpleNamespace(page=page))
    trace, html = tmp_path / "trace.json", tmp_path / "page.html"
    assert run("torch:2.9", "--perfetto", str(trace), "--html", str(html)) == (0, "", "")
    assert Trace(trace.read_bytes()).slices
    assert html.read_text() == "<html>"
    code, out, _ = run("torch:2.9", "--html", str(html), "--compare", "torch:2.9", "--json")
    assert code == 0
    assert json.loads(out)["difference"]["length_us"] is not None
    assert seen == [(2, None), (2, 1)]
    code, _, err = run("torch:2.9", "--perfetto", f"{tmp_path}/no/such/folder")
    assert code == errors.AccessError.exit_code
    assert "cannot write" in err


def test_two_starts_are_compared(tmp_path: Path, run: Run) -> None:
    keep(tmp_path, 1000)
    keep(tmp_path, 2000, profile=FULL)
    code, out, _ = run("torch:2.9", "--compare", "torch:2.9", "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["start"]["began"], told["other"]["began"]) == (2, 1)
    assert told["difference"]["length_us"] == told["start"]["length_us"] - told["other"]["length_us"]
    code, out, _ = run("torch:2.9", "--compare", "torch:2.9")
    assert "THIS START  THE OTHER  DIFFERENCE" in out
    code, _, err = run("torch:2.9", "--start", "2", "--compare", "torch:2.9")
    assert code == errors.NotFoundError.exit_code
    assert "no other start" in err


def test_what_optimize_gained_is_found_on_this_host(tmp_path: Path, run: Run) -> None:
    keep(tmp_path, 1000, manifest=OLD, ref="torch:old")
    keep(tmp_path, 2000, manifest=OLD, ref="torch:old", label="another")
    keep(tmp_path, 3000, profile=FULL, optimized={"from": OLD, "expected_gain": {}})
    told = json.loads(run("torch:2.9", "--json")[1])
    old = json.loads(run("torch:old", "--start", "2", "--json")[1])
    assert "Optimized from 111111111111: " in told["advice"]["gain"]
    assert old["label"] == ""
    saved = old["length_us"] - told["length_us"]
    assert f"{saved / 1e6:.2f} s less" in told["advice"]["gain"]


def test_a_start_that_had_to_have_a_profile_is_told_from_the_first_one(tmp_path: Path, run: Run) -> None:
    keep(tmp_path, 1000)
    assert json.loads(run("torch:2.9", "--json")[1])["advice"]["code"] == "start-again"
    keep(tmp_path, 1100)  # which began before the first was over
    assert json.loads(run("torch:2.9", "--json")[1])["advice"]["code"] == "start-again"
    keep(tmp_path, 90_000)
    assert json.loads(run("torch:2.9", "--json")[1])["advice"]["code"] == "profile-unused"
    assert json.loads(run("torch:2.9", "--json", "--start", "3")[1])["advice"]["code"] == "start-again"
    keep(tmp_path, 95_000, label="another")
    assert json.loads(run("torch:2.9", "--json")[1])["advice"]["code"] == "start-again"


def test_what_is_kept_is_listed(tmp_path: Path, run: Run) -> None:
    assert run("--list")[:2] == (0, "")
    paths = [keep(tmp_path, 1000), keep(tmp_path, 3000, profile=FULL), keep(tmp_path, 2000, manifest=OLD, ref="b:1")]
    (tmp_path / "cache/starts/.temporary").write_bytes(b"")
    (tmp_path / f"cache/starts/{NEW}-5.json.zst").write_bytes(b"damaged")
    told = json.loads(run("--list", "--json")[1])
    assert [row["path"] for row in told] == [str(paths[1]), str(paths[2]), str(paths[0])]
    assert [row["profiled"] for row in told] == [True, False, False]
    lines = run("--list", "b:1")[1].splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(str(paths[2]))


def test_what_could_steer_a_terminal_is_escaped(tmp_path: Path, run: Run) -> None:
    keep(tmp_path, 1000, mountpoint="/m\x1b[31m", ref="torch:2.9", entry=["\x1b]0;x\x07"])
    for arguments in (["torch:2.9"], ["--list"]):
        assert "\x1b" not in run(*arguments)[1]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("", errors.UsageError),
        ("unknown:1", errors.NotFoundError),
        ("torch:2.9", errors.NotFoundError),
        ("Not A Ref", errors.UsageError),
        ("5a5a5a5b", errors.NotFoundError),
        ("/no/such/path", errors.NotFoundError),
        ("./nothing.json", errors.NotFoundError),
        ("DIRECTORY", errors.MountError),
        ("OLDER", errors.IntegrityError),
        ("NEWER", errors.UnsupportedError),
        ("CUT", errors.IntegrityError),
        ("SECRET", errors.AccessError),
    ],
)
def test_what_cannot_be_explained(target: str, expected: type[errors.ImageFSError], tmp_path: Path, run: Run) -> None:
    """With an exit code of its own, and in JSON as well."""
    good = json.dumps(document(100)).encode()
    (tmp_path / "OLDER").write_bytes(b"a page of text\n")
    (tmp_path / "NEWER").write_bytes(good.replace(b'"format": 1', b'"format": 2'))
    (tmp_path / "CUT").write_bytes(compressed(good)[:-20])
    (tmp_path / "SECRET").symlink_to("/proc/self/mem")  # what can be opened and not be read
    (tmp_path / "DIRECTORY").mkdir()
    place = f"{tmp_path}/{target}" if target.isupper() and target.isalpha() else target
    code, out, err = run(place, "--json")
    assert code == expected.exit_code
    assert json.loads(out)["error"]["type"] == expected.__name__
    assert err.startswith("imagefs: ")


def test_a_start_number_that_is_not_kept(tmp_path: Path, run: Run) -> None:
    keep(tmp_path, 1000)
    code, _, err = run("torch:2.9", "--start", "2")
    assert code == errors.NotFoundError.exit_code
    assert "no start number 2 of torch:2.9: 1 kept" in err
    assert run()[0] == errors.UsageError.exit_code
