"""The OCI document of a sandbox, and what makes two sandboxes equal to a frozen program."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagefs.errors import UsageError
from snapshotstore.checkpoint.base import Bind, Sandbox
from snapshotstore.checkpoint.bundle import config, differences, encode, identity

SANDBOX = Sandbox(
    name="one",
    root=Path("/images/one"),
    state=Path("/state/one"),
    output=Path("/output/one"),
    argv=("/bin/program", "--option"),
    environment={"B": "2", "A": "1"},
    cwd="/work",
    uid=1000,
    gid=1001,
    hostname="host",
    binds=(Bind(source=Path("/data"), target="/in"), Bind(source=Path("/own"), target="/out", writable=True)),
)


def test_what_runs_and_as_whom() -> None:
    made = config(SANDBOX)
    process = made["process"]
    assert process["args"] == ["/bin/program", "--option"]
    assert process["env"] == ["A=1", "B=2"]
    assert process["cwd"] == "/work"
    assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": []}
    assert made["hostname"] == "host"
    assert made["root"]["path"] == "/images/one"
    assert process["terminal"] is False


def test_it_has_no_privileges() -> None:
    process = config(replace(SANDBOX, uid=0, gid=0))["process"]
    assert process["noNewPrivileges"] is True
    assert len(process["capabilities"]) == 5
    assert not any(process["capabilities"].values())


def test_binds_are_read_only_unless_they_are_writable() -> None:
    binds = {mount["destination"]: mount for mount in config(SANDBOX)["mounts"] if mount["type"] == "bind"}
    assert binds.keys() == {"/in", "/out"}
    assert binds["/in"]["source"] == "/data"
    assert "ro" in binds["/in"]["options"]
    assert "rw" not in binds["/in"]["options"]
    assert "rw" in binds["/out"]["options"]
    for bind in binds.values():
        assert {"nosuid", "nodev"} <= set(bind["options"])


def test_what_a_program_expects_is_mounted() -> None:
    targets = [mount["destination"] for mount in config(SANDBOX)["mounts"]]
    assert {"/proc", "/dev", "/dev/shm", "/dev/pts", "/sys"} <= set(targets)
    assert targets[-2:] == ["/in", "/out"]  # over everything else


def test_the_network_is_the_given_one() -> None:
    def network(sandbox: Sandbox) -> dict[str, str]:
        (found,) = (each for each in config(sandbox)["linux"]["namespaces"] if each["type"] == "network")
        return found  # type: ignore[no-any-return]

    assert network(SANDBOX) == {"type": "network"}
    assert network(replace(SANDBOX, network=Path("/run/netns/x"))) == {"type": "network", "path": "/run/netns/x"}


def test_equal_sandboxes_have_equal_bytes() -> None:
    assert encode(config(SANDBOX)) == encode(config(replace(SANDBOX, environment={"A": "1", "B": "2"})))
    assert json.loads(encode(config(SANDBOX))) == config(SANDBOX)


def test_bytes_that_are_no_text_survive() -> None:
    odd = replace(SANDBOX, argv=("/bin/program", "caf\udce9"))
    assert b"caf\xe9" in encode(config(odd))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "two"},
        {"root": Path("/images/elsewhere")},
        {"state": Path("/state/two")},
        {"output": Path("/output/two")},
        {"network": Path("/run/netns/x")},
        {"cgroup": Path("/sys/fs/cgroup/x")},
        {"environment": {"A": "1", "B": "2"}},
        {"binds": (Bind(source=Path("/other"), target="/in"), Bind(source=Path("/mine"), target="/out/", writable=True))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_may_differ_in_a_clone(changes: dict[str, Any]) -> None:
    assert differences(identity(SANDBOX), identity(replace(SANDBOX, **changes))) == []


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"argv": ("/bin/program",)}, "argv"),
        ({"environment": {"A": "1"}}, "environment"),
        ({"cwd": "/"}, "cwd"),
        ({"uid": 0}, "user"),
        ({"gid": 0}, "user"),
        ({"hostname": "other"}, "hostname"),
        ({"binds": ()}, "binds"),
        ({"binds": (SANDBOX.binds[0], replace(SANDBOX.binds[1], writable=False))}, "binds"),
        ({"binds": (SANDBOX.binds[0], replace(SANDBOX.binds[1], target="/elsewhere"))}, "binds"),
    ],
)
def test_what_has_to_be_equal_is_named(changes: dict[str, Any], name: str) -> None:
    assert differences(identity(SANDBOX), identity(replace(SANDBOX, **changes))) == [name]


def test_a_part_that_only_one_knows_differs() -> None:
    known = identity(SANDBOX)
    assert differences(known | {"later": "00"}, known) == ["later"]


def test_an_identity_tells_no_secret() -> None:
    told = encode(identity(replace(SANDBOX, environment={"TOKEN": "s3cret-of-ours"})))
    assert b"s3cret" not in told


@pytest.mark.parametrize("name", ["", "-one", "One", "one/two", "one.two", "..", "o" * 65, "one\n"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        config(replace(SANDBOX, name=name))


@pytest.mark.parametrize("target", ["/", "", ".", "/in/../..", ".."])
def test_a_place_where_nothing_can_be_bound(target: str) -> None:
    with pytest.raises(UsageError, match="bound"):
        config(replace(SANDBOX, binds=(Bind(source=Path("/data"), target=target),)))


@pytest.mark.parametrize(
    "changes",
    [{"root": Path("root")}, {"state": Path("state")}, {"output": Path("output")}, {"binds": (Bind(source=Path("data"), target="/in"),)}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_path_that_depends_on_who_asks(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="absolute"):
        config(replace(SANDBOX, **changes))


def test_a_program_that_is_none() -> None:
    with pytest.raises(UsageError, match="no program"):
        config(replace(SANDBOX, argv=()))


@pytest.mark.parametrize("name", ["", "A=B"])
def test_a_name_that_no_environment_has(name: str) -> None:
    with pytest.raises(UsageError, match="environment"):
        config(replace(SANDBOX, environment={name: "x"}))
