"""The command line's own promises: help is light, errors have codes, JSON is one document, and the pages say what the commands do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from imagefs import config, errors
from imagefs_cli import failures, manual, options, output
from imagefs_cli.group import COMMANDS, cli
from imagefs_cli.main import main
from tests.system.world import World

DOCS = Path(__file__).parents[2] / "docs"
BINARY = Path(sys.executable).parent / "imagefs"


def every_error(base: type[errors.ImageFSError] = errors.ImageFSError) -> list[type[errors.ImageFSError]]:
    ours = [child for child in base.__subclasses__() if child.__module__ == errors.__name__]
    return [base, *(found for child in ours for found in every_error(child))]


def test_each_command_is_where_the_table_says_and_has_its_short_help() -> None:
    ctx = click.Context(cli)
    for name, entry in COMMANDS.items():
        found = cli.get_command(ctx, name)
        assert found is not None
        assert found.name == name
        assert found.short_help == entry.short_help


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from imagefs_cli.main import main; main(['--help']); print(' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & {
        "trio",
        "pyfuse3",
        "rich",
        "zstandard",
        "blake3",
        "boto3",
        "msgspec",
        "structlog",
        "imagefs.convert",
        "imagefs.daemon",
    }


def test_mount_with_a_daemon_imports_nothing_heavy() -> None:
    script = "import sys; import imagefs_cli.mounting, imagefs.daemon.client; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert not set(done.stdout.split()) & {"trio", "pyfuse3", "rich", "zstandard", "boto3", "structlog"}


def test_each_error_has_an_exit_code_of_its_own() -> None:
    codes = [found.exit_code for found in every_error()]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("name", ["cli.md", "errors.md"])
def test_the_pages_say_what_the_commands_and_the_errors_say(name: str) -> None:
    assert (DOCS / name).read_text() == manual.documents()[name], "run `imagefs man --markdown --out docs`"


def test_the_page_of_errors_lists_every_exit_code() -> None:
    page = manual.errors_page()
    for found in every_error():
        assert f"| {found.exit_code} | `{found.__name__}` |" in page
    for code in (failures.EXIT_BUG, failures.EXIT_INTERRUPTED, failures.EXIT_PIPE):
        assert f"| {code} | | |" in page


def test_every_setting_is_described_and_log_levels_agree() -> None:
    assert list(manual.SETTINGS) == list(config.ENVIRONMENT)
    assert options.LOG_LEVELS == config.LOG_LEVELS


def test_man_pages_are_written_for_each_command(tmp_path: Path) -> None:
    assert main(["man", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {f"imagefs-{name}.1" for name in COMMANDS}
    done = subprocess.run(
        ["man", "-l", tmp_path / "imagefs-convert.1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", "MANPAGER": "cat", "MANWIDTH": "400"},
    )
    if done.returncode == 0:
        assert "docker-archive:FILE[:NAME]" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["convert"], ["mount", "a"], ["images", "--nonsense"], ["convert", "x", "y", "--jobs", "0"]]
)
def test_a_wrong_command_line_ends_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "imagefs: " in said.err


def test_errors_are_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "x", "--json", "--store", "/nonexistent/store"]) == errors.StoreError.exit_code
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["type"] == "StoreError"
    assert document["error"]["exit_code"] == errors.StoreError.exit_code
    assert document["error"]["hint"]


def test_an_unexpected_error_is_said_to_be_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("imagefs.config.load_config", lambda _: 1 / 0)
    assert main(["images"]) == 70
    assert "Traceback" not in (said := capsys.readouterr().err)
    assert "this is a bug" in said
    assert main(["images", "-v"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_options_may_stand_before_and_after_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content")
    store = str(tmp_path / "store")
    assert main(["--store", store, "convert", f"dir:{source}", "a:1", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["images", "--store", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["manifest"] == first["manifest"]


def test_tag_inspect_and_rm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content" * 100)
    store = ["--store", str(tmp_path / "store")]
    assert main(["convert", f"dir:{source}", "a:1", *store]) == 0
    assert main(["tag", "a:1", "b:2", *store]) == 0
    assert main(["rm", "a:1", *store]) == 0
    capsys.readouterr()
    assert main(["inspect", "b:2", "--json", *store]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["files"] == 1
    assert main(["inspect", "a:1", *store]) == errors.NotFoundError.exit_code
    assert "b:2" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_the_command_quietly(imagefs: World) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [BINARY, "man", "--markdown", "--help"], env=imagefs.env, stdout=writer, stderr=subprocess.PIPE, timeout=30, check=False
        )
    finally:
        os.close(writer)
    assert done.returncode == failures.EXIT_PIPE
    assert done.stderr == b""


def test_no_command_prints_the_help_and_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == failures.EXIT_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Usage: imagefs")
    assert "imagefs: Usage" not in said.err


def test_interrupting_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imagefs.config.load_config", interrupt)
    assert main(["images"]) == failures.EXIT_INTERRUPTED


def test_what_could_steer_a_terminal_is_escaped() -> None:
    assert output.plain("plain, größe\n") == "plain, größe\n"
    assert output.plain("\x1b]0;title\x07 \udcff") == "\\x1b]0;title\\x07 \\udcff"


def test_a_name_that_is_not_utf8_is_no_bug(imagefs: World, tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/\xff"
    for extra in ([], ["--json"]):
        done = subprocess.run([BINARY, "images", "--store", place, *extra], env=imagefs.env, capture_output=True, timeout=30, check=False)
        assert done.returncode == errors.StoreError.exit_code
        if extra:
            assert json.loads(done.stdout)["error"]["type"] == "StoreError"


def test_the_daemon_group_takes_the_global_options(imagefs: World, tmp_path: Path) -> None:
    done = subprocess.run(
        [BINARY, "daemon", "--runtime", tmp_path / "none", "status", "--json"],
        env=imagefs.env,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == errors.DaemonError.exit_code
    assert json.loads(done.stdout)["error"]["type"] == "DaemonError"


def test_doctor_says_what_is_missing(imagefs: World) -> None:
    done = subprocess.run(
        [BINARY, "doctor", "--json"],
        env=imagefs.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    document = json.loads(done.stdout)
    names = {finding["name"]: finding for finding in document["findings"]}
    assert {"/dev/fuse", "fusermount3", "EROFS", "store", "cache"} <= set(names)
    assert document["ok"] == (done.returncode == 0)
    assert names["store"]["state"] == "warn"
