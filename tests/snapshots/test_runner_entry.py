"""What is no service, told without running any of it; and the command line's bad input, with its exit codes."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imagefs.errors import LimitError, UsageError
from snapshotstore.runner import source
from snapshotstore.runner.entry import find, of_class
from tests.snapshots.services import IMAGE, Place
from tests.system.world import World

HEAD = "from snapshotstore import App, enter, method\napp = App('name')\n"
BODY = "\nclass Service:\n    @method()\n    def ask(self, x=0): return x\n"
GOOD = HEAD + "@app.cls(image='python:1')" + BODY


def write(folder: Path, text: str | bytes, name: str = "service.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.mark.parametrize(
    ("text", "image", "environment"),
    [
        (GOOD, "python:1", ()),
        ("raise SystemExit\nimport nowhere\n" + GOOD, "python:1", ()),
        (HEAD + "IMAGE: str = 'python:2'\n@app.cls(image=IMAGE, environment=['ONE', 'TWO'])" + BODY, "python:2", ("ONE", "TWO")),
        ("NAME = 'name'\nfrom snapshotstore import App, method\napp: App = App(name=NAME)\n@app.cls(image='a')" + BODY, "a", ()),
        (HEAD + "@app.cls(image='old')" + BODY + "@app.cls(image='new')" + BODY, "new", ()),
    ],
)
def test_a_service_is_read_and_not_run(tmp_path: Path, text: str, image: str, environment: tuple[str, ...]) -> None:
    found = find("service:Service", write(tmp_path, text))
    assert (found.settings.app, found.settings.image, found.settings.environment) == ("name", image, environment)
    assert found.methods == frozenset({"ask"})


def test_services_in_packages_and_in_classes(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "a/b.py")
    write(tmp_path, HEAD + "class Outer:\n    @app.cls(image='inner')\n    class Inner: pass\n", "a/c/__init__.py")
    assert find("a.b:Service", tmp_path).settings.image == "python:1"
    assert find("a.c:Outer.Inner", tmp_path).settings.image == "inner"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:\n", "no Python that this version reads: invalid syntax"),
        (b"\xff\xfe\x00", "no Python that this version reads"),
        (b"x = 1\x00\n", "no Python that this version reads"),
        ("x = " + "(" * 5000, "no Python that this version reads"),
        ("x = " + "-" * 200_000 + "1\n", "no Python that this version reads"),
        ("", "has no class Service"),
        ("Service = 1\n", "has no class Service"),
        ("class Service: pass\n", r"is no service: the class has no @app.cls\(...\)"),
        (HEAD + "@app.cls" + BODY, r"is no service: the class has no @app.cls\(...\)"),
        (HEAD + "import os\n@app.cls(image=os.environ['IMAGE'])" + BODY, r"service.py:4: os.environ\['IMAGE'\] is no literal"),
        (HEAD + "@app.cls(image=NOWHERE)" + BODY, "NOWHERE is no literal"),
        (HEAD + "@app.cls(image=1)" + BODY, "needs image=..., by name"),
        (HEAD + "@app.cls('python:1')" + BODY, "needs image=..., by name"),
        (HEAD + "@app.cls(image='a', **more)" + BODY, "needs image=..., by name"),
        (HEAD + "@app.cls()" + BODY, "needs image=..., by name"),
        (HEAD + "@app.cls(image='a', gpu=2)" + BODY, "does not know gpu"),
        (HEAD + "@app.cls(image='a', environment='HOME')" + BODY, "environment, secrets and preload are lists of names"),
        (HEAD + "@app.cls(image='a', environment=5)" + BODY, "environment, secrets and preload are lists of names"),
        (HEAD + "@app.cls(image='a', secrets=[1])" + BODY, "environment, secrets and preload are lists of names"),
        ("from other import app\n@app.cls(image='a')" + BODY, "the app of this class is not made in its module"),
        ("from snapshotstore import App\napp = App(input())\n@app.cls(image='a')" + BODY, r"input\(\) is no literal"),
    ],
)
def test_what_is_no_service_is_told(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        find("service:Service", write(tmp_path, text))
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("target", ["service", ":Service", "service:", "../service:Service", "a b:C", "a..b:C", "service:Service()", ""])
def test_what_is_no_name_of_a_service(tmp_path: Path, target: str) -> None:
    with pytest.raises(UsageError, match="not a service"):
        find(target, write(tmp_path, GOOD))


def test_a_module_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no module service in "):
        find("service:Service", tmp_path)
    (tmp_path / "service.py").mkdir()
    with pytest.raises(UsageError, match="there is no module service in "):
        find("service:Service", tmp_path)
    with (tmp_path / "large.py").open("w") as file:
        file.truncate(17 << 20)
    with pytest.raises(UsageError, match="too large for a module"):
        find("large:Service", tmp_path)


@pytest.mark.parametrize("text", [GOOD.replace("@method()", "@renamed()"), HEAD + "@app.cls(image='a')\nclass Service(Base): pass\n"])
def test_a_method_that_may_be_there_is_not_refused(tmp_path: Path, text: str) -> None:
    find("service:Service", write(tmp_path, text)).check("ask")


def test_a_method_that_cannot_be_there_is_refused(tmp_path: Path) -> None:
    text = GOOD + "    def own(self): pass\n    @enter(snap=True)\n    def load(self): pass\n"
    found = find("service:Service", write(tmp_path, text))
    for name in ("own", "load", "nothing", "__init__"):
        with pytest.raises(UsageError, match=f"has no method {name} that can be called"):
            found.check(name)


def test_a_class_that_nobody_else_can_import() -> None:
    class Local: ...

    with pytest.raises(UsageError, match=r"has no @app.cls"):
        of_class(Local)
    from snapshotstore.app import App  # noqa: PLC0415

    with pytest.raises(UsageError, match="cannot be imported elsewhere"):
        of_class(App("x").cls(image="a")(Local))


def test_a_source_tree_that_is_too_large_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no directory"):
        source.read_tree(tmp_path / "none")
    write(tmp_path, b"x" * 3000, "data/large")
    monkeypatch.setattr(source, "BYTES_MAX", 20_000)
    source.read_tree(tmp_path)
    for number in range(100):
        write(tmp_path, b"x" * 1000, f"data/{number}")
    with pytest.raises(LimitError, match="more than"):
        source.read_tree(tmp_path)


def test_a_source_tree_is_its_names_contents_and_execute_bits(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", GOOD), write(tmp_path / "two", GOOD)
    for name in (".git/config", "__pycache__/x.pyc", "x.pyc", ".hidden"):
        write(two, b"left out", name)
    os.utime(two / "service.py", (1, 1))
    os.mkfifo(two / "pipe")
    assert source.read_tree(one).digest == source.read_tree(two).digest
    seen = {source.read_tree(one).digest}
    changes: list[Any] = [
        lambda: (two / "service.py").chmod(0o755),
        lambda: write(two, GOOD + "\n"),
        lambda: write(two, b"", "empty"),
        lambda: (two / "link").symlink_to("service.py"),
        lambda: (two / "empty").rename(two / "renamed"),
        lambda: (two / "link").rename(two / "linked"),
    ]
    for change in changes:
        change()
        seen.add(source.read_tree(two).digest)
    assert len(seen) == 1 + len(changes)


# -- the command ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("service:Service", "--call", "ask", "--args", "{"), 2, "--args is no JSON"),
        (("service:Service", "--call", "ask", "--args", "5"), 2, "neither a list nor an object"),
        (("service:Service", "--call", "ask", "--args", "[NaN]"), 2, "cannot be sent as JSON"),
        (("service:Service", "--call", "none"), 2, "has no method none"),
        (("service:Service",), 2, "--call"),
        (("service:None", "--call", "ask"), 2, "has no class None"),
        (("nowhere:Service", "--call", "ask"), 2, "there is no module nowhere"),
        (("service:Service", "--call", "ask", "--source", "/none"), 2, "there is no"),
        (("service:Service", "--call", "ask", "--image", "none:1"), 6, "none:1"),
        (("service:Service", "--call", "ask", "--timeout", "0"), 2, "--timeout"),
        (("service:Needs", "--call", "ask"), 2, "needs TOKEN in the environment"),
    ],
)
def test_bad_input_to_the_command(imagefs: World, words: tuple[str, ...], status: int, told: str) -> None:
    (imagefs.root / "empty").mkdir()
    write(imagefs.root, GOOD + "@app.cls(image='python:1', secrets=['TOKEN'])" + BODY.replace("Service", "Needs"))
    imagefs.environment["PATH"] = f"{Path(__file__).parents[2]}/.cache/engines/bin:{os.environ['PATH']}"
    if status == 6:
        imagefs.convert(f"dir:{imagefs.root}/empty", "other:1")
    done = imagefs.attempt("snapshot", "run", *words, "--json")
    assert (done.status, done.json["error"]["exit_code"]) == (status, status)
    assert told in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_the_command_prints_one_document(service_place: Place, imagefs: World) -> None:
    service_place.frozen(service_place.entry(GOOD.replace("'python:1'", f"{IMAGE!r}, enable_memory_snapshot=True")), "ask")
    imagefs.store = service_place.store_folder
    imagefs.environment["PATH"] = os.environ["PATH"]
    words = ("snapshot", "run", "service:Service", "--call", "ask", "--source", service_place.root / "source", "--engine", "criu")
    done = imagefs.run(*words, "--args", '{"x": [1, "é"]}', "--json")
    assert {"result", "started", "reason", "timeline", "notes", "log", "engine", "snapshot"} <= done.json.keys()
    assert (done.json["result"], done.json["started"]) == ([1, "é"], "restored")
    done = imagefs.run(*words, "--args", "[2]")
    assert json.loads(done.out) == 2
    assert done.err.startswith("restored with criu: ")
    failed = imagefs.attempt(*words, "--args", "[1, 2]", "--json")
    assert (failed.status, failed.json["error"]["exit_code"]) == (16, 16)
    assert "ask raised TypeError" in failed.err


_UNUSED = {
    *("click", "concurrent.futures", "hashlib", "logging", "random", "statistics", "tempfile"),
    *("boto3", "lmdb", "structlog", "trio", "imagefs.convert.convert", "imagefs.store.checked", "imagefs.store.s3"),
    *("snapshotstore.lineage", "snapshotstore.repository", "snapshotstore.checkpoint.criu_dump", "snapshotstore.checkpoint.runsc"),
}
"""What takes longer to load than it takes to answer, and has nothing to do with that."""


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_a_restored_answer_waits_for_nothing_that_it_does_not_use(service_place: Place, imagefs: World) -> None:
    service_place.frozen(service_place.entry(GOOD.replace("'python:1'", f"{IMAGE!r}, enable_memory_snapshot=True")), "ask")
    imagefs.store = service_place.store_folder
    imagefs.environment["PATH"] = os.environ["PATH"]
    script = "import sys; from imagefs_cli.main import main; code = main(sys.argv[1:]); print(code, *sys.modules, file=sys.stderr)"
    words = ("snapshot", "run", "service:Service", "--call", "ask", "--source", service_place.root / "source", "--engine", "criu")
    imagefs.run(*words)  # What is found out once about an engine is kept for the next one.
    command = [imagefs.interpreter, "-c", script, *map(str, words), "--json"]
    done = subprocess.run(command, env=imagefs.env, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["started"] == "restored"
    code, *loaded = done.stderr.split()
    assert (code, _UNUSED & set(loaded)) == ("0", set())
