"""The short way of a mount's command line: what it reads it reads as click does, it ends as click's does, and it loads next to nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs import settings
from imagefs.daemon import mounting
from imagefs.errors import ImageFSError, MountError, UnsupportedError
from imagefs_cli import declared, failures, group, lean, mounts, snapshot_call
from imagefs_cli.invocation import Invocation
from imagefs_cli.main import main
from imagefs_cli.snapshot_run import run_command
from snapshotstore.runner.engines import NAMES
from snapshotstore.runner.runner import CALL_SECONDS
from tests.system.world import World

DECLARED = {"mount": declared.MOUNT, "umount": declared.UMOUNT, "snapshot run": declared.RUN}
PLACES = {"mount": ["app:1", "/mnt"], "umount": ["/mnt"], "snapshot run": ["service:Service", "--call", "ask"]}
RARE = snapshot_call.run.__kwdefaults__ or {}
RESULT = {"mode": "fuse", "reason": "said \x1b so", "mountpoint": "/mnt"}


def written(option: declared.Option) -> list[list[str]]:
    """Return the ways to write an option that both have to know."""
    if option.kind == declared.FLAG:
        return [[name] for name in option.names]
    values = option.choices or {declared.SHARE: ("0", "0.25", "1", "1e-3")}.get(option.kind, ("/a/b", "x y", "a=b", "ü"))
    joined = [
        [f"{name}={value}"] for name in option.names for value in (*values, *([] if option.choices or option.name == "wait" else [""]))
    ]
    if option.kind == declared.SHARE:
        return [*joined, [option.names[0]]]
    return joined + [[name, value] for name in option.names for value in values]


def by_click(line: Sequence[str]) -> lean.Call | None:
    """Return what click makes of a line; None if it does not come to doing it."""
    found: list[lean.Call] = []

    def mount(invocation: Invocation, ref: str, mountpoint: str, options: dict[str, Any]) -> None:
        found.append(lean.Call("mount", [ref, mountpoint], options, invocation))

    def umount(invocation: Invocation, mountpoint: str, options: dict[str, Any]) -> None:
        found.append(lean.Call("umount", [mountpoint], options, invocation))

    def call(invocation: Invocation, target: str, options: dict[str, Any], **rest: Any) -> None:
        assert rest == RARE, "lean knows nothing of these"
        found.append(lean.Call("snapshot run", [target], options, invocation))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mounts, "mount", mount)
        patch.setattr(mounts, "umount", umount)
        patch.setattr(snapshot_call, "run", call)
        group.run(line)
    return found[0] if found else None


def told(call: lean.Call | None) -> object:
    if call is None:
        return None
    said = call.invocation
    return call.command, call.arguments, call.options, said.flags, said.verbose, said.wants_json, said.command_line


@pytest.mark.parametrize("command", list(DECLARED))
def test_each_option_is_read_as_click_reads_it(command: str) -> None:
    for option in (*DECLARED[command], *declared.GLOBAL, declared.JSON):
        for words in [] if option.rare else written(option):
            for line in ([*command.split(), *words, *PLACES[command]], [*command.split(), *PLACES[command], *words]):
                call = lean.read(line)
                assert call is not None, line
                assert told(call) == told(by_click(line)), line


def test_what_is_for_all_commands_may_stand_before_them() -> None:
    for option in declared.GLOBAL:
        for words in written(option):
            for line in ([*words, "umount", "/mnt"], ["snapshot", *words, "run", *PLACES["snapshot run"]]):
                assert told(lean.read(line)) == told(by_click(line)), line
                assert lean.read(line) is not None


_WORDS = st.one_of(
    st.sampled_from(
        [words for options in (*DECLARED.values(), declared.GLOBAL, (declared.JSON,)) for one in options for words in written(one)]
    ),
    st.sampled_from(
        [
            ["app:1"],
            ["/mnt"],
            ["snapshot"],
            ["run"],
            ["--timeout", "1"],
            ["-"],
            ["--"],
            [""],
            ["-h"],
            ["--help"],
            ["-vv"],
            ["--mod", "fuse"],
            ["--mode"],
            ["--json=1"],
            ["-v=1"],
        ]
    ),
    st.lists(st.text("-=amo1: \udcff", max_size=4), min_size=1, max_size=1),
)


@given(st.sampled_from(list(DECLARED)), st.lists(_WORDS, max_size=2), st.lists(_WORDS, max_size=5))
def test_whatever_is_read_is_read_as_click_reads_it(command: str, before: list[list[str]], after: list[list[str]]) -> None:
    line = [word for words in (*before, command.split(), *after) for word in words]
    call = lean.read(line)
    if call is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", None)
            assert told(call) == told(by_click(line))


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["mount"],
        ["mount", "-h"],
        ["mount", "app:1"],
        ["mount", "app:1", "/mnt", "/more"],
        ["mount", "app:1", ""],
        ["mount", "app:1", "/mnt", "--nonsense"],
        ["mount", "app:1", "/mnt", "--mode", "fast"],
        ["mount", "app:1", "/mnt", "--mode"],
        ["mount", "app:1", "/mnt", "--dev=1"],
        ["mount", "app:1", "/mnt", "--foreground"],
        ["mount", "app:1", "/mnt", "--wait-prefetch=2"],
        ["mount", "app:1", "/mnt", "--wait-prefetch=nan"],
        ["mount", "--", "app:1", "/mnt"],
        ["umount", "/mnt", "--dev"],
        ["--json", "umount", "/mnt"],
        ["--lazy", "umount", "/mnt"],
        ["images"],
        ["--store", "mount"],
        ["run", "service:Service", "--call", "ask"],
        ["snapshot"],
        ["snapshot", "--json", "run", "service:Service", "--call", "ask"],
        ["snapshot", "snapshot", "run", "service:Service", "--call", "ask"],
        ["snapshot", "ls"],
        ["snapshot", "mount", "app:1", "/mnt"],
        ["snapshot", "run", "service:Service"],
        ["snapshot", "run", "--call", "ask"],
        ["snapshot", "run", "service:Service", "--call", "ask", "--timeout", "1"],
        ["snapshot", "run", "service:Service", "--call", "ask", "--network", "/proc/self/ns/net"],
        ["snapshot", "run", "service:Service", "--call", "ask", "--engine", "none"],
    ],
)
def test_what_is_not_plain_is_left_to_click(line: list[str]) -> None:
    assert lean.read(line) is None


def _mount_that(patch: pytest.MonkeyPatch, outcome: BaseException | dict[str, Any]) -> None:
    def mount(_: object, **wanted: Any) -> dict[str, Any]:
        del wanted
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    patch.setattr(mounting, "mount", mount)


@pytest.mark.parametrize("extra", [[], ["--json"], ["--mode", "fuse"], ["--log-level", "loud"], ["--json", "--config", "/nonexistent"]])
@pytest.mark.parametrize(
    "outcome",
    [
        RESULT,
        MountError("it is \x07 taken", hint="umount it"),
        UnsupportedError("no"),
        ImageFSError("any"),
        KeyboardInterrupt(),
        ValueError(1),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_it_ends_as_with_click(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extra: list[str], outcome: BaseException | dict[str, Any]
) -> None:
    _mount_that(monkeypatch, outcome)
    line = ["mount", "app:1", "/mnt", *extra]
    ended = []
    for run in (main, group.run):
        code = run(line)
        ended.append((code, *capsys.readouterr()))
    assert ended[0] == ended[1]
    if "loud" not in extra and "/nonexistent" not in extra:
        assert ended[0][0] == {dict: 0, KeyboardInterrupt: failures.EXIT_INTERRUPTED, ValueError: failures.EXIT_BUG}.get(
            type(outcome), getattr(outcome, "exit_code", None)
        )


def test_a_bug_shows_where_it_is_when_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _mount_that(monkeypatch, ValueError("broken"))
    assert main(["mount", "app:1", "/mnt", "-v"]) == failures.EXIT_BUG
    said = capsys.readouterr().err
    assert "_mount_that" not in said.splitlines()[-1]
    assert "in mount\n" in said
    assert "ValueError: broken" in said


_FAKE = """
import sys
from imagefs.daemon import mounting
mounting.mount = lambda *_, **__: {"mode": "fuse", "reason": "x" * 100_000}
from imagefs_cli.invocation import Invocation
from imagefs_cli.main import main
sys.exit(main())
"""


def test_all_is_written_before_the_process_ends() -> None:
    line = [sys.executable, "-c", _FAKE, "mount", "app:1", "/mnt", "--json"]
    done = subprocess.run(line, capture_output=True, timeout=60, check=True)
    assert len(json.loads(done.stdout)["reason"]) == 100_000


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-c", _FAKE, "mount", "app:1", "/mnt", "--json"]
    try:
        done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (failures.EXIT_PIPE, b"")


def test_without_its_streams_it_mounts_all_the_same() -> None:
    script = '"$0" -c "$1" mount app:1 /mnt >&- 2>&-'
    done = subprocess.run(["sh", "-c", script, sys.executable, _FAKE], timeout=60, check=False)
    assert done.returncode == 0


_LOADED = """
import sys
before = set(sys.modules)
from imagefs_cli.{module} import main
code = main(sys.argv[1:])
print(code, *sorted(set(sys.modules) - before))
"""


def _loaded(world: World, module: str, *line: str) -> set[str]:
    """Run a command line in a new process; return the modules that it loads."""
    command = [world.interpreter, "-c", _LOADED.format(module=module), *line]
    done = subprocess.run(command, env=world.env, capture_output=True, text=True, timeout=60, check=True)
    code, *found = done.stdout.split()
    assert code == "0", done.stderr
    return set(found)


def test_a_plain_mount_loads_next_to_nothing(imagefs: World, tmp_path: Path) -> None:
    """Neither click nor what takes longer to load than all that is ours: so each module is named here that it may load."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("content")
    imagefs.convert(f"dir:{tmp_path}/source", "app:1")
    imagefs.mount("app:1", "keeper")
    point = imagefs.root / "mnt"
    point.mkdir()
    may = {"_json", "_socket", "blake3", "blake3.blake3", "errno"}
    line = ["mount", "app:1", str(point), "--mode", "fuse", "--no-prefetch", "--profile-label", "a", "-v", "--store", str(imagefs.store)]
    loaded = _loaded(imagefs, "main", *line)
    assert (point / "file").read_text() == "content"
    assert {name for name in loaded if name.split(".")[0] not in {"imagefs", "imagefs_cli"}} <= may
    assert {name for name in loaded if name.startswith("imagefs.")} <= {
        *("imagefs.settings", "imagefs.digest", "imagefs.errors", "imagefs.daemon", "imagefs.daemon.mounting", "imagefs.daemon.asking"),
        *("imagefs.daemon.plain_json", "imagefs.daemon.wire"),
    }
    assert _loaded(imagefs, "main", "umount", str(point)) <= loaded
    helped = _loaded(imagefs, "mount_helper", "app:1", str(point), "-o", "rw,_netdev,x-a=b,mode=fuse,norecord")
    assert helped <= loaded | {"imagefs_cli.mount_helper"}
    assert (point / "file").read_text() == "content"
    assert not _loaded(imagefs, "main", "umount", str(point), "--lazy") & {"click", "re"}


def test_levels_and_modes_are_those_of_the_settings() -> None:
    assert declared.LOG_LEVELS == settings.LOG_LEVELS
    assert next(option.choices for option in declared.MOUNT if option.name == "mode") == settings.MODES


def test_engines_and_the_time_for_an_answer_are_those_of_the_runner() -> None:
    assert next(option.choices for option in declared.RUN if option.name == "engine") == ("auto", *NAMES)
    by_hand = next(param.default for param in run_command.params if param.name == "timeout")
    assert RARE["timeout"] == by_hand == CALL_SECONDS
