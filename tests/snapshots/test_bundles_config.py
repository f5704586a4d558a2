"""What a bundle may ask for, what it goes without, and what is refused."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.errors import ImageFSError, IntegrityError, LimitError, SourceError, UnsupportedError
from snapshotstore.checkpoint.base import ANY_USER, Engine
from snapshotstore.runner import bundles_program
from snapshotstore.runner.bundles_config import CONFIG_MAX, read_bundle
from snapshotstore.runner.bundles_program import BundleProgram
from tests.snapshots import bundle
from tests.system.world import require, tool

PROGRAM = BundleProgram(argv=("/bin/program", ""), environment={"A": "1"}, cwd="/", uid=0, gid=0, hostname="host")


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """A configuration that can be run, but for its program."""
    (tmp_path / "rootfs").mkdir()
    return bundle.config(Path("rootfs"))


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return the document with one value set, by its keys with dots between them."""
    *outer, last = path.split(".")
    section = document
    for key in outer:
        section = section.setdefault(key, {})
    section[last] = value
    return document


def test_what_a_program_is_told(document: dict[str, Any], tmp_path: Path) -> None:
    process = document["process"]
    process |= {"args": ["/bin/program", "", "é"], "env": ["B=2", "A=1", "B=x=3", "EMPTY="], "user": {"uid": 1000, "gid": 1001}}
    process["user"]["additionalGids"] = [1001]
    found = read_bundle(bundle.write(tmp_path, document))
    assert found.root == tmp_path / "rootfs"
    assert found.program == BundleProgram(
        argv=("/bin/program", "", "é"),
        environment={"B": "x=3", "A": "1", "EMPTY": ""},
        cwd="/tmp",
        uid=1000,
        gid=1001,
        hostname="redis",
    )


def test_what_it_goes_without_is_noted(document: dict[str, Any], tmp_path: Path) -> None:
    document["root"]["readonly"] = True
    document["process"]["noNewPrivileges"] = False
    document["linux"]["namespaces"] = [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}]
    document["linux"]["resources"] |= {"memory": {"limit": 1 << 30}}
    document["mounts"][2]["options"].append("size=1g")
    document["hooks"] = {"prestart": []}
    notes = "\n".join(read_bundle(bundle.write(tmp_path, document)).notes)
    for word in (
        "root.readonly",
        "CAP_KILL",
        "rlimits",
        "mqueue",
        "maskedPaths",
        "memory",
        "size=1g",
        "noNewPrivileges",
        "network, ipc, uts",
    ):
        assert word in notes
    assert "hooks" not in notes


REFUSED: list[tuple[str, Any, str]] = [
    ("process.terminal", True, "process.terminal"),
    ("process.capabilities.bounding", ["CAP_KILL", "CAP_SYS_ADMIN"], "CAP_SYS_ADMIN"),
    ("process.apparmorProfile", "docker-default", "process.apparmorProfile"),
    ("process.user.additionalGids", [0, 27], "additionalGids 27"),
    ("process.user.umask", 0o077, "process.user.umask"),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_ERRNO"}, "linux.seccomp"),
    ("linux.sysctl", {"net.core.somaxconn": "1024"}, "linux.sysctl"),
    ("linux.uidMappings", [{"containerID": 0, "hostID": 1000, "size": 1}], "linux.uidMappings"),
    ("linux.devices", [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}], "/dev/fuse"),
    ("linux.namespaces", [{"type": "network", "path": "/run/netns/x"}], "--network"),
    ("linux.namespaces", [{"type": "user"}], "linux.namespaces user"),
    ("mounts", [{"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind"]}], "/data of type bind"),
    ("mounts", [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}], "/tmp of type tmpfs"),
    ("mounts", [{"destination": "/proc", "type": "bind", "source": "/proc"}], "/proc of type bind"),
    ("hooks", {"createRuntime": [{"path": "/bin/hook"}]}, "hooks"),
    ("vm", {"kernel": {"path": "/vmlinuz"}}, "vm"),
    ("somethingNew", {"of": "later"}, "somethingNew"),
    ("ociVersion", "2.0", "ociVersion 2.0"),
]


@pytest.mark.parametrize("path, value, named", REFUSED, ids=[f"{path} {number}" for number, (path, _, _) in enumerate(REFUSED)])
def test_what_a_sandbox_does_not_have_is_refused_by_name(
    document: dict[str, Any], tmp_path: Path, path: str, value: Any, named: str
) -> None:
    folder = bundle.write(tmp_path, changed(document, path, value))
    with pytest.raises(UnsupportedError, match=named) as raised:
        read_bundle(folder)
    assert "config.json" in str(raised.value.hint)


def test_all_of_it_is_told_at_once(document: dict[str, Any], tmp_path: Path) -> None:
    folder = bundle.write(tmp_path, changed(changed(document, "process.terminal", True), "linux.seccomp", {"x": 1}))
    with pytest.raises(UnsupportedError, match=r"linux\.seccomp.*process\.terminal|process\.terminal.*linux\.seccomp"):
        read_bundle(folder)


MALFORMED: list[tuple[str, Any]] = [
    ("process.args", []),
    ("process.args", None),
    ("process.args", "redis"),
    ("process.args", ["redis", 7]),
    ("process.args", ["a\0b"]),
    ("process.args", ["\ud800"]),
    ("process.env", ["NOTHING"]),
    ("process.env", ["=x"]),
    ("process.cwd", "tmp"),
    ("process.cwd", ""),
    ("process.user", {"uid": -1}),
    ("process.user", {"uid": 1 << 32}),
    ("process.user", {"uid": "root"}),
    ("process.user", {"uid": True}),
    ("process.capabilities.bounding", ["CAP_EVERYTHING"]),
    ("process.capabilities.bounding", ["KILL"]),
    ("process.capabilities", ["CAP_KILL"]),
    ("process", []),
    ("root", {}),
    ("root.path", ""),
    ("root.path", "nowhere"),
    ("hostname", "x" * 65),
    ("hostname", 7),
    ("mounts", {}),
    ("mounts", ["/proc"]),
    ("mounts", [{"type": "proc"}]),
    ("mounts", [{"destination": "/proc", "type": "proc", "options": [[]]}]),
    ("linux.namespaces", [{}]),
    ("linux.devices", [{}]),
    ("ociVersion", None),
]


@pytest.mark.parametrize("path, value", MALFORMED, ids=[f"{path} {number}" for number, (path, _) in enumerate(MALFORMED)])
def test_what_is_no_configuration(document: dict[str, Any], tmp_path: Path, path: str, value: Any) -> None:
    folder = bundle.write(tmp_path, changed(document, path, value))
    with pytest.raises(SourceError):
        read_bundle(folder)


def _places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return all places in a document, lists by their first entry."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, part in value.items():
            found += _places(part, (*path, key))
    elif isinstance(value, list) and value:
        found += _places(value[0], (*path, "0"))
    return found


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["/proc", "CAP_KILL", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "type", "uid", "x"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(place=st.sampled_from(_places(bundle.config(Path("rootfs")))), value=_JSON)
@settings(max_examples=300, deadline=None)
def test_whatever_stands_there_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, place: tuple[str, ...], value: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    (folder / "rootfs").mkdir(parents=True, exist_ok=True)
    document: Any = bundle.config(Path("rootfs"))
    section = document
    for key in place[:-1]:
        section = section[int(key) if isinstance(section, list) else key]
    section[int(place[-1]) if isinstance(section, list) else place[-1]] = value
    with contextlib.suppress(SourceError, UnsupportedError):
        found = read_bundle(bundle.write(folder, document))
        assert bundles_program.decode(bundles_program.encode(found.program)) == found.program


def _no_file(path: Path) -> None:
    path.unlink(missing_ok=True)


def _a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "make, error",
    [
        (_no_file, SourceError),
        (_a_pipe, SourceError),
        (Path.mkdir, SourceError),
        (lambda path: path.write_bytes(b""), SourceError),
        (lambda path: path.write_bytes(b"{"), SourceError),
        (lambda path: path.write_bytes(b"[]"), SourceError),
        (lambda path: path.write_bytes(b"\xff\xfe{}"), SourceError),
        (lambda path: path.write_bytes(b"[" * 1000 + b"]" * 1000), LimitError),
        (lambda path: path.write_bytes(b'{"a":' * 100_000), LimitError),
        (lambda path: path.write_bytes(b" " * (10 << 20)), LimitError),
        (lambda path: path.write_bytes(b" " * (CONFIG_MAX + 1)), LimitError),
    ],
    ids=["none", "a pipe", "a directory", "empty", "cut", "a list", "no text", "deep", "deeper", "10 MB", "one byte too many"],
)
def test_what_is_no_bundle(tmp_path: Path, make: Callable[[Path], object], error: type[ImageFSError]) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(error):
        read_bundle(tmp_path)


def test_a_bundle_as_umoci_makes_it(tmp_path: Path) -> None:
    require("root", "umoci keeps owners")
    require("umoci")
    tool("umoci", "init", "--layout", "layout", cwd=tmp_path)
    tool("umoci", "new", "--image", "layout:x", cwd=tmp_path)
    tool("umoci", "unpack", "--image", "layout:x", "unpacked", cwd=tmp_path)
    folder = tmp_path / "unpacked"
    with pytest.raises(UnsupportedError, match=r"does not have: process\.terminal[^;]*$"):
        read_bundle(folder)
    document = json.loads((folder / "config.json").read_text())
    document["process"]["terminal"] = False
    found = read_bundle(bundle.write(folder, document))
    assert found.program.argv == ("sh",)
    assert found.root == folder / "rootfs"


# -- what a snapshot keeps ----------------------------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back() -> None:
    data = bundles_program.encode(PROGRAM)
    assert bundles_program.decode(data) == PROGRAM
    assert bundles_program.decode(data).spec() == PROGRAM.spec()


@pytest.mark.parametrize(
    "changes", [{"argv": ("/bin/other",)}, {"environment": {}}, {"cwd": "/tmp"}, {"uid": 7}, {"gid": 7}, {"hostname": "x"}]
)
def test_all_of_it_is_in_the_digest(changes: dict[str, Any]) -> None:
    assert replace(PROGRAM, **changes).spec() != PROGRAM.spec()


def test_what_is_too_large_is_not_kept() -> None:
    with pytest.raises(LimitError):
        bundles_program.encode(replace(PROGRAM, environment={"A": "x" * bundles_program.FILE_MAX}))


@pytest.mark.parametrize(
    "data, error",
    [
        (b"", IntegrityError),
        (b"{}", IntegrityError),
        (b"\xff", IntegrityError),
        (bundles_program.encode(PROGRAM)[:-1], IntegrityError),
        (bundles_program.encode(PROGRAM) + b" ", IntegrityError),
        (bundles_program.encode(PROGRAM).replace(b'"cwd":"/"', b'"cwd":"x"'), IntegrityError),
        (bundles_program.encode(PROGRAM).replace(b'"uid":0', b'"uid":-1'), IntegrityError),
        (bundles_program.encode(PROGRAM).replace(b'"uid":0', b'"uid":0,"root":"/etc"'), IntegrityError),
        (bundles_program.encode(PROGRAM).replace(b'"format":1', b'"format":2'), UnsupportedError),
        (bundles_program.encode(replace(PROGRAM, argv=())), IntegrityError),
        (bundles_program.encode(replace(PROGRAM, environment={"A": "a\0b"})), IntegrityError),
        (b"[" * 100, LimitError),
        (b" " * (bundles_program.FILE_MAX + 1), LimitError),
    ],
)
def test_what_is_kept_and_damaged(data: bytes, error: type[ImageFSError]) -> None:
    with pytest.raises(error):
        bundles_program.decode(data)


def test_who_cannot_be_frozen() -> None:
    runsc, criu = (Engine(name=name, version="1", format="x", program=Path("/x"), is_exact=False) for name in ("runsc", "criu"))
    other = replace(PROGRAM, uid=1000, gid=1000)
    assert PROGRAM.refused_by(criu) is None
    assert other.refused_by(runsc) is None
    assert other.refused_by(replace(criu, features=frozenset({ANY_USER}))) is None
    refused = other.refused_by(criu)
    assert isinstance(refused, UnsupportedError)
    assert "CAP_SYS_RESOURCE" in refused.message
