"""Programs that misbehave before the boundary, in it and after it: each ends in a named error, or in an answer, and nothing is left."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from imagefs.errors import DeadlineError, LimitError, ProgramError, UsageError
from snapshotstore import agent
from snapshotstore.runner import starting
from snapshotstore.runner.runner import COLD, RESTORED
from tests.snapshots.services import Place

HEAD = """
import ctypes, json, os, signal, socket, struct, sys, threading, time
from snapshotstore import App, enter, exit, method

app = App("odd")

def busy():
    while True:
        try:
            time.sleep(60)
        except Exception:
            pass
"""
SERVICE = """
@app.cls(image="python:1", enable_memory_snapshot=True, environment=("MOOD",))
class Service:
"""


def source(*methods: str) -> str:
    """Return the text of a service with these methods."""
    return HEAD + SERVICE + "".join(f"    {line}\n" for text in methods for line in text.strip("\n").splitlines())


ASK = "@method()\ndef ask(self, x=1): return x"

METHODS = source(
    ASK,
    "@method()\ndef fail(self): raise LookupError('not there: ' + 'x' * 20)",
    "@method()\ndef hang(self): time.sleep(600)",
    "@method()\ndef leave(self): print('leaving', flush=True); os._exit(3)",
    "@method()\ndef stop(self): sys.exit('enough')",
    "@method()\ndef crash(self): ctypes.string_at(0)",
    "@method()\ndef killed(self): os.kill(os.getpid(), signal.SIGSEGV); time.sleep(600)",
    "@method()\ndef large(self, size): return 'x' * size",
    "@method()\ndef echo(self, *args, **named): return [args, named]",
    "@method()\ndef nothing(self): pass",
    "@method()\ndef odd(self): return {1, 2}",
    "@method()\ndef nan(self): return float('nan')",
    "@method()\ndef deep(self):\n    found = []\n    for _ in range(100_000): found = [found]\n    return found",
    "@method()\ndef raw(self, text, length=None):",
    "    import gc",
    "    connection = next(o for o in gc.get_objects() if isinstance(o, socket.socket) and o.family == socket.AF_UNIX)",
    "    connection.sendall(struct.pack('>Q', len(text) if length is None else length) + text.encode())",
    "    time.sleep(600)",
    "@method()\ndef drip(self):",
    "    import gc",
    "    connection = next(o for o in gc.get_objects() if isinstance(o, socket.socket) and o.family == socket.AF_UNIX)",
    "    connection.sendall(struct.pack('>Q', 1000))",
    "    while True: connection.sendall(b' '); time.sleep(0.05)",
)


@pytest.fixture(autouse=True)
def mood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOD", "")


RAISES: list[tuple[str, list[object], Any, str]] = [
    ("fail", [], ProgramError, "fail raised LookupError: not there: xxx"),
    ("none", [], UsageError, "service:Service has no method none"),
    ("busy", [], UsageError, "service:Service has no method busy"),
    ("ask", [1, 2, 3], ProgramError, "ask raised TypeError"),
    ("odd", [], ProgramError, "odd raised TypeError: .*JSON"),
    ("nan", [], ProgramError, "nan raised ValueError: .*JSON"),
    ("deep", [], ProgramError, "deep raised RecursionError"),
]
ENDS: list[tuple[str, list[object], Any, str]] = [
    ("leave", [], ProgramError, "the program ended while leave ran"),
    ("stop", [], ProgramError, "the program ended while stop ran"),
    ("crash", [], ProgramError, "the program ended while crash ran"),
    ("killed", [], (ProgramError, DeadlineError), "the program ended while killed ran|killed did not answer"),
    ("hang", [], DeadlineError, "hang did not answer within 1 s"),
    ("drip", [], DeadlineError, "drip did not answer within 1 s"),
]
SENDS: list[tuple[str, list[object], Any, str]] = [
    ("raw", ["this is no JSON"], ProgramError, "what raw answered is no JSON"),
    ("raw", ['{"result": NaN}'], ProgramError, "what raw answered is no JSON: NaN"),
    ("raw", ["[1]"], ProgramError, "neither a result nor an error"),
    ("raw", ["{}"], ProgramError, "neither a result nor an error"),
    ("raw", ['{"error": [1]}'], ProgramError, "raw raised"),
    ("raw", ["[" * 200_000], ProgramError, "what raw answered is no JSON"),
    ("raw", ["", agent.FRAME_MAX + 1], LimitError, f"an answer of {agent.FRAME_MAX + 1} bytes"),
    ("raw", ["x", 1 << 30], DeadlineError, "raw did not answer within 1 s"),
]


@pytest.fixture
def methods(service_place: Place) -> Place:
    """Where the service with all the methods has been frozen."""
    service_place.frozen(service_place.entry(METHODS), "ask")
    return service_place


@pytest.mark.parametrize("cases", [RAISES, ENDS, SENDS], ids=["raises", "ends", "sends"])
def test_a_method_that_does_not_answer(methods: Place, cases: list[tuple[str, list[object], Any, str]]) -> None:
    runner = methods.runner()
    service = methods.entry(METHODS)
    for method, arguments, kind, words in cases:
        begun = time.monotonic()
        with pytest.raises(kind, match=words) as raised:
            runner.call(service, method, arguments, {}, timeout=1)
        assert time.monotonic() - begun < 10
        if cases is RAISES and kind is ProgramError:
            assert "Traceback" in raised.value.traceback
    # What a call does to its replica is nothing to the next one.
    answer = runner.call(service, "ask", [5], {})
    assert (answer.result, answer.started, answer.reason) == (5, RESTORED, "")


def test_answers_of_all_sizes(methods: Place) -> None:
    runner = methods.runner()
    service = methods.entry(METHODS)
    assert runner.call(service, "nothing", [], {}).result is None
    assert runner.call(service, "large", [0], {}).result == ""
    size = 100_000_000
    assert runner.call(service, "large", [size], {}).result == "x" * size
    named = {"é": [None, True, 1.5, "\ud800", "\0"], "b" * 1000: {"": []}}
    assert runner.call(service, "echo", [[1], "2"], named).result == [[[1], "2"], named]


def test_what_a_program_prints_last_is_found(methods: Place) -> None:
    with pytest.raises(ProgramError) as raised:
        methods.runner().call(methods.entry(METHODS), "leave", [], {})
    found = re.search(r"(/\S+\.log)", raised.value.hint or "")
    assert found is not None
    assert Path(found[1]).read_text() == "leaving\n"


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
@pytest.mark.parametrize(("args", "named"), [([float("nan")], {}), ([{1}], {}), ([b"x"], {}), ([], {"x": float("inf")})])
def test_arguments_that_are_no_json(service_place: Place, args: list[object], named: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="the arguments of ask cannot be sent as JSON"):
        service_place.runner().call(service_place.entry(METHODS), "ask", args, named)
    assert service_place.refs() == []


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ("raise OSError('no weights')", "load failed: no weights"),
        ("os._exit(4)", "the program ended before it could be frozen"),
        ("sys.exit(4)", "4"),
        ("ctypes.string_at(0)", "the program ended before it could be frozen"),
        ("import nowhere", "load failed: No module named 'nowhere'"),
    ],
)
@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_a_beginning_that_fails(service_place: Place, load: str, words: str) -> None:
    service = service_place.entry(source(f"@enter(snap=True)\ndef load(self): {load}", ASK))
    with pytest.raises(ProgramError, match=f"^{re.escape(words)}$"):
        service_place.runner().call(service, "ask", [], {})
    assert service_place.refs() == []


HOOKS = {
    "@enter(snap=True, timeout=0.3)\ndef load(self): time.sleep(60)": "load took longer than 0.3 s",
    "@enter(snap=True, timeout=0.3)\ndef load(self): busy()": "load took longer than 0.3 s",
    "@enter(snap=False, timeout=0.3)\ndef connect(self): time.sleep(60)": "connect took longer than 0.3 s",
    "@enter(snap=False, timeout=0.3)\ndef connect(self): busy()": "connect took longer than 0.3 s",
    "@enter(snap=False)\ndef connect(self): raise OSError('no database')": "connect failed: no database",
    "@app.before_snapshot(timeout=0.3)\ndef before(): busy()": "before took longer than 0.3 s",
    "@app.before_snapshot()\ndef before(): raise OSError('not now')": "before failed: not now",
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_a_hook_that_fails_or_takes_too_long_on_a_cold_start(service_place: Place, hook: str) -> None:
    text = HEAD + hook + SERVICE + "    " + ASK.replace("\n", "\n    ") if "app." in hook else source(hook, ASK)
    begun = time.monotonic()
    with pytest.raises(ProgramError, match=f"^{re.escape(HOOKS[hook])}$"):
        service_place.call(service_place.entry(text), "ask")
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("raise OSError('no database')", "connect failed: no database"),
        ("time.sleep(60)", "connect took longer than 0.5 s"),
        ("busy()", "connect took longer than 0.5 s"),
        ("os._exit(5)", "the program ended before it answered"),
    ],
)
def test_a_hook_that_fails_after_a_restore_alone(service_place: Place, told: str, words: str) -> None:
    """Then the program starts cold, which answers with the reason."""
    hook = f"@enter(snap=False, timeout=0.5)\ndef connect(self):\n    if os.environ['MOOD'] == 'bad' and self.cold: {told}"
    cold = "@enter(snap=True)\ndef load(self): self.cold = os.environ['MOOD'] != 'bad'"
    service = service_place.entry(source(cold, hook, ASK))
    assert service_place.call(service, "ask").started == COLD
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOOD", "bad")
        answer = service_place.call(service, "ask", 7)
    assert (answer.result, answer.started) == (7, COLD)
    assert re.search(rf"the restore of \S+ failed: {words}", answer.reason), answer.reason


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_an_exit_hook_that_hangs_holds_nobody_up(service_place: Place) -> None:
    service = service_place.entry(source(ASK, "@exit(timeout=0.3)\ndef leave(self): busy()"))
    begun = time.monotonic()
    assert service_place.call(service, "ask", 3).result == 3
    assert time.monotonic() - begun < 15


HOSTILE = source(
    "@enter(snap=True)\ndef load(self):",
    "    here = '/.imagefs/replica/'",
    "    for name in ('.new', 'alive.new', 'replica.new'): os.symlink(os.environ['MOOD'], here + name)",
    "    os.remove(here + 'begin.json'); os.symlink(os.environ['MOOD'], here + 'begin.json')",
    "@enter(snap=False)\ndef connect(self):",
    "    here = '/.imagefs/replica/'",
    "    os.path.lexists(here + 'state.json') and os.remove(here + 'state.json')",
    "    os.mkfifo(here + 'state.json')",
    ASK,
)


def test_a_program_cannot_lead_the_host_elsewhere(service_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links and pipes in the directory that it shares with the host: what the host writes there has secrets, and the host is root."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    monkeypatch.setenv("MOOD", str(victim))
    monkeypatch.setattr(starting, "SERVING_SECONDS", 20.0)
    service = service_place.entry(HOSTILE)
    assert service_place.call(service, "ask", 1).result == 1
    assert victim.read_text() == "untouched"
