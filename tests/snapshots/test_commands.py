"""``imagefs snapshot``: what it lists, shows, compares, verifies, stores, brings and removes; and what it says of what it cannot."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from msgspec import structs

from imagefs.errors import AccessError, IntegrityError, NotFoundError, SourceError, StoreError, UnsupportedError
from imagefs.store.images import get_manifest
from imagefs.store.refs import Ref, publish
from imagefs_cli import manual
from imagefs_cli.group import cli
from imagefs_cli.main import main
from imagefs_cli.snapshot import COMMANDS, snapshot_command
from snapshotstore import compat, lineage
from snapshotstore.fingerprints import PAGE
from snapshotstore.listing import AT_ONCE, listing
from snapshotstore.manifest import UNTOLD, Economics, Runtime
from snapshotstore.repository import inspect
from snapshotstore.runner import timeline
from snapshotstore.runner.workplace import logs_folder
from tests.fuse.images import noise
from tests.snapshots.checkpoints import changed, memory, record
from tests.snapshots.commands import CRIU, MEMORY_FILE, Commands, altered, by_hand, commands, criu, newer
from tests.snapshots.engines import engine as real_engine
from tests.store.faulty import Fault, FaultyStore, flipped
from tests.system.world import require as require_feature

__all__ = ["commands", "criu"]

PAGES = 3000


def test_each_command_is_where_the_table_says_and_has_its_short_help() -> None:
    ctx = click.Context(snapshot_command)
    for name, entry in COMMANDS.items():
        found = snapshot_command.get_command(ctx, name)
        assert found is not None
        assert (found.name, found.short_help) == (name, entry.short_help)


def test_the_shells_and_the_man_pages_know_the_commands() -> None:
    shell = BashComplete(cli, {}, "imagefs", "_IMAGEFS_COMPLETE")
    assert [item.value for item in shell.get_completions(["snapshot"], "ve")] == ["verify"]
    assert "--lineage" in [item.value for item in shell.get_completions(["snapshot", "push"], "--l")]
    paths = {ctx.command_path for ctx in manual.commands()}
    assert {f"imagefs snapshot {name}" for name in COMMANDS} <= paths


def test_help_imports_no_command(tmp_path: Path) -> None:
    script = "import sys; from imagefs_cli.main import main; main(['snapshot', '--help']); print(' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert "verify" in done.stdout
    loaded = set(done.stderr.split())
    assert "imagefs_cli.snapshot" in loaded
    assert not loaded & {"imagefs_cli.snapshot_show", "snapshotstore", "msgspec", "trio", "zstandard", "blake3", "imagefs.store"}


def test_a_command_that_there_is_not_is_told_with_the_nearest(commands: Commands) -> None:
    code, _, said = commands.attempt("verifi")
    assert (code, "verify" in said) == (2, True)


# -- ls -----------------------------------------------------------------------------------------------------------------------------------


def test_ls_lists_snapshots_with_what_they_are_and_no_images(commands: Commands) -> None:
    image = commands.image("torch:1")
    assert commands.run("ls") == {"snapshots": [], "unreadable": []}
    base = record()
    oci = structs.replace(base.oci, image=image)
    first = commands.push("one", memory(PAGES, zero=0.2), "service:one", oci=oci)
    commands.push("two", changed(memory(PAGES, zero=0.2), 0.1, seed=3), "service:two", oci=oci)
    commands.push("other", memory(5), "service/part:one", economics=Economics(quarantined="two crashes"))
    found = commands.run("ls")["snapshots"]
    assert [row["ref"] for row in found] == ["service:one", "service:two", "service/part:one"]
    one, two, other = found
    assert (one["manifest"], one["lineage"], one["image"], one["image_refs"]) == (first, "service", image, ["torch:1"])
    assert one["engine"] == {"name": "criu", "version": "4.1.1", "format": "criu-1"}
    assert (one["created"], one["quarantined"], one["problem"]) == (base.created, None, None)
    assert two["bytes_unique"] < one["bytes_unique"] < one["bytes"]
    assert other["quarantined"] == "two crashes"
    assert [row["ref"] for row in commands.run("ls", "service")["snapshots"]] == ["service:one", "service:two"]
    _, out, _ = commands.attempt("ls")
    assert "torch:1" in out
    assert "service/part:one" in out


def test_ls_says_whether_it_fits_and_if_not_why(commands: Commands, criu: Path) -> None:
    commands.push("a", memory(5), "a:1")
    commands.push("b", memory(5), "b:1", runtime=Runtime(engine="runsc", version="2024", format="gvisor-pages-1"))
    a, b = commands.run("ls")["snapshots"]
    assert (a["fits"], a["why_not"]) == (True, [])
    assert any("Linux" in why for why in a["warnings"])
    assert (b["fits"], len(b["why_not"])) == (False, 1)
    assert "runsc" in b["why_not"][0]
    _, out, _ = commands.attempt("ls")
    assert "no: it needs the engine runsc" in out
    criu.unlink()
    assert [row["fits"] for row in commands.run("ls")["snapshots"]] == [False, False]


def test_ls_goes_on_past_what_it_cannot_read(commands: Commands) -> None:
    good = commands.push("a", memory(5), "a:good")
    newer(commands.store, good, "a:newer")
    (commands.root / "store/refs/a/damaged").write_text("{")
    (commands.root / "store/refs/a/gone").write_bytes((commands.root / "store/refs/a/good").read_bytes().replace(good.encode(), b"1" * 64))
    found = commands.run("ls")
    assert {row["ref"]: row["problem"] is None for row in found["snapshots"]} == {"a:good": True, "a:newer": False}
    assert "format 2" in found["snapshots"][1]["problem"]
    assert [row["ref"] for row in found["unreadable"]] == ["a:damaged", "a:gone"]
    code, out, said = commands.attempt("ls")
    assert (code, "a:newer" in out, "a:damaged" in said) == (0, True, True)


def test_each_manifest_is_read_once_and_not_one_after_the_other(commands: Commands) -> None:
    digest = commands.push("one", memory(5), "a:1")
    for tag in range(40):
        publish(commands.store, Ref("a", f"again{tag}"), digest)
    for tag in range(AT_ONCE):
        newer(commands.store, digest, f"b:{tag}", kernel=f"{tag}")
    at_once = threading.Barrier(AT_ONCE)
    waits = Fault("get", "manifests/*", times=AT_ONCE, before=lambda: at_once.wait(20))
    store = FaultyStore(commands.store, [waits])
    found = listing(store)
    assert len(found.snapshots) == 41 + AT_ONCE
    assert sorted(key for op, key in store.calls if (op, key[:9]) == ("get", "manifests")) == sorted(
        {f"manifests/{listed.name}" for listed in found.snapshots}
    )


def test_images_tells_snapshots_from_images(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands.image("torch:1")
    commands.push("a", memory(5), "service:1")
    capsys.readouterr()
    assert main(["images", "--json", "--store", f"{commands.root}/store"]) == 0
    assert {row["ref"]: row["kind"] for row in json.loads(capsys.readouterr().out)["images"]} == {
        "torch:1": "image",
        "service:1": "snapshot",
    }


# -- inspect ------------------------------------------------------------------------------------------------------------------------------


def test_inspect_shows_record_files_and_memory_by_pages(commands: Commands) -> None:
    data = memory(PAGES, zero=0.2)
    zero = sum(data[at : at + PAGE] == bytes(PAGE) for at in range(0, len(data), PAGE)) * PAGE
    commands.push("one", data, "service:1")
    digest = commands.push("two", data[: 2000 * PAGE] + noise(1000 * PAGE, 77), "service:2")
    first = commands.run("inspect", "service:1")
    assert first["memory"] == [{"path": MEMORY_FILE, "bytes": len(data), "zero": zero, "new": len(data) - zero, "shared": 0}]
    found = commands.run("inspect", "service:2")
    (one,) = found["memory"]
    assert one["new"] == 1000 * PAGE
    assert one["zero"] + one["new"] + one["shared"] == len(data)
    assert (found["digest"], found["record"]["lineage"]) == (digest, "service")
    paths = {row["path"]: row for row in found["files"]}
    assert paths[MEMORY_FILE]["size"] == len(data)
    assert (paths["layer/usr/lib/link"]["type"], paths["layer"]["type"]) == ("symlink", "directory")
    assert (found["fits"], any("criu" in why for why in found["why_not"])) == (False, True)
    code, out, said = commands.attempt("inspect", "service:2")
    assert (code, said) == (0, "")
    assert "why not" in out
    assert "1,000" in out


def test_inspect_tells_what_this_host_has_measured(commands: Commands) -> None:
    digest = commands.push("one", memory(5), "service:1")
    assert commands.run("inspect", "service:1")["here"] == {"restores": 0, "restore_p50": None}
    assert "restored here" not in commands.attempt("inspect", "service:1")[1]
    logs = logs_folder(commands.root / "run")
    logs.mkdir(parents=True)
    for number, (snapshot, engine) in enumerate([(digest, 0.25), (digest, 1.0), (digest, 0.5), ("f" * 64, 9.0), (None, 9.0)]):
        stages = {"resolve": 0.125, "engine": engine, "call": 30.0}
        made = timeline.Timeline(began=1.0, target="t", started="restored", reason="", engine="criu", snapshot=snapshot, stages=stages)
        timeline.keep(logs / f"{number}.log", made)
    assert commands.run("inspect", "service:1")["here"] == {"restores": 3, "restore_p50": 0.625}
    assert "3 times of late, in 0.625 s (median)" in commands.attempt("inspect", "service:1")[1]


def test_what_is_no_snapshot_is_refused_with_the_reason(commands: Commands) -> None:
    commands.image("torch:1")
    newer(commands.store, commands.push("a", memory(5), "a:1"), "a:newer")
    altered(commands.store, commands.run("inspect", "a:1")["digest"], "a:forged", "{}")
    others = {"inspect": (), "verify": (), "pull": (), "diff": ("a:1",)}
    for command, more in others.items():
        commands.fails(UnsupportedError.exit_code, "no snapshot", command, "torch:1", *more)
        commands.fails(UnsupportedError.exit_code, "format 2", command, "a:newer", *more)
        commands.fails(IntegrityError.exit_code, "record", command, "a:forged", *more)
        commands.fails(NotFoundError.exit_code, "no image", command, "none:1", *more)
    assert "imagefs rm" in commands.fails(UnsupportedError.exit_code, "no snapshot", "rm", "torch:1")["hint"]


def test_a_store_that_is_away_is_an_error_everywhere(commands: Commands) -> None:
    shutil.rmtree(commands.root / "store")
    for arguments in (
        ["ls"],
        ["inspect", "a:1"],
        ["diff", "a:1", "a:2"],
        ["verify", "a:1"],
        ["verify", "--all"],
        ["rm", "a:1"],
        ["pull", "a:1"],
    ):
        assert commands.fails(StoreError.exit_code, "store", *arguments)["type"] == "StoreError"


# -- rm -----------------------------------------------------------------------------------------------------------------------------------


def test_a_snapshot_leaves_its_lineage_with_its_last_ref(commands: Commands) -> None:
    data = memory(50)
    digest = commands.push("one", data, "a:1")
    publish(commands.store, Ref.parse("a:again"), digest)
    assert commands.run("rm", "a:1") == {"ref": "a:1", "manifest": digest, "left": ["a:again"], "forgotten": False}
    assert len(lineage.load(commands.store, "service").index) == 50
    assert commands.run("rm", "a:again") == {"ref": "a:again", "manifest": digest, "left": [], "forgotten": True}
    assert len(lineage.load(commands.store, "service").index) == 0
    assert get_manifest(commands.store, digest).files == 8
    commands.fails(NotFoundError.exit_code, "a:again", "rm", "a:again")


def test_what_cannot_be_read_is_left_to_the_command_that_removes_any_ref(commands: Commands) -> None:
    digest = commands.push("one", memory(50), "a:1")
    (commands.root / "store/manifests" / digest).unlink()
    assert "imagefs rm a:1" in commands.fails(NotFoundError.exit_code, "no manifest", "rm", "a:1")["hint"]


def test_what_a_version_to_come_has_written_can_be_removed(commands: Commands) -> None:
    newer(commands.store, commands.push("one", memory(50), "a:1"), "b:1")
    assert not commands.run("rm", "b:1")["forgotten"]
    assert [row["ref"] for row in commands.run("ls")["snapshots"]] == ["a:1"]


# -- push ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("criu")
def test_a_checkpoint_made_by_hand_is_stored_with_what_is_known_of_this_host(commands: Commands) -> None:
    image = commands.image("torch:1")
    data = memory(PAGES, zero=0.1)
    folder = by_hand(commands.root / "one", data)
    arguments = ("--engine", "criu", "--image", "torch:1", "--lineage", "app", "--flag=--shell-job", "--flag=--tcp-close")
    report = commands.run("push", folder, "service:1", *arguments)
    found = commands.run("inspect", "service:1")
    assert found["digest"] == report["manifest"]
    assert found["record"]["runtime"] | {"format": ""} == {
        "engine": "criu",
        "version": "4.1.1",
        "format": "",
        "exact": False,
        "flags": ["--shell-job", "--tcp-close"],
    }
    assert (found["record"]["oci"]["image"], found["record"]["lineage"]) == (image, "app")
    assert (found["fits"], found["why_not"], found["warnings"]) == (True, [], [])
    paths = [row["path"] for row in found["files"]]
    assert paths[0] == "engine"
    assert all(path.startswith("engine/") for path in paths[1:])
    assert found["memory"][0]["bytes"] == len(data)
    # The same, laid out as a snapshot, and of the lineage: hardly anything is new.
    again = commands.run("push", folder.parent, "service:2", *arguments)
    assert again["stored_bytes"] == 0
    assert commands.run("diff", "service:1", "service:2", code=1)["memory"][0]["changed"] == 0
    assert commands.run("ls")["snapshots"][0]["image_refs"] == ["torch:1"]


@pytest.mark.usefixtures("criu")
def test_a_push_that_looks_heals_what_verify_has_found(commands: Commands) -> None:
    folder = by_hand(commands.root / "one", memory(PAGES, zero=0.1))
    commands.run("push", folder, "service:1", "--engine", "criu")
    largest = max((commands.root / "store/packs").iterdir(), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    largest.unlink()
    largest.write_bytes(flipped(whole))
    code, _, said = commands.attempt("verify", "service:1")
    assert (code, "--recheck" in said, "imagefs snapshot run" in said) == (IntegrityError.exit_code, True, True)
    # Pushed again without a look it refers to what is damaged.
    assert commands.run("push", folder, "service:1", "--engine", "criu")["healed"] == 0
    assert not commands.run("verify", "service:1", code=IntegrityError.exit_code)["ok"]
    code, out, _ = commands.attempt("push", folder, "service:1", "--engine", "criu", "--recheck")
    assert (code, "1 that were damaged in the store" in out) == (0, True)
    assert largest.read_bytes() == whole
    assert commands.run("verify", "--all")["ok"]


@pytest.mark.usefixtures("criu")
def test_only_the_owner_can_read_what_is_stored(commands: Commands) -> None:
    before = set((commands.root / "store").rglob("*"))
    commands.run("push", by_hand(commands.root / "one", memory(PAGES)), "service:1", "--engine", "criu")
    made = set((commands.root / "store").rglob("*")) - before
    assert {path.relative_to(commands.root / "store").parts[0] for path in made} >= {"packs", "blobs", "manifests", "lineages", "refs"}
    assert [path for path in made if path.stat().st_mode & 0o077] == []


@pytest.mark.usefixtures("criu")
def test_without_an_image_it_is_known_of_none(commands: Commands) -> None:
    commands.run("push", by_hand(commands.root / "one", memory(5)), "service:1", "--engine", "criu")
    assert commands.run("ls")["snapshots"][0]["image"] is None
    found = inspect(commands.store, "service:1").record
    assert (found.lineage, found.oci.image) == ("service", UNTOLD)
    here = replace(compat.collect(), image="a" * 64)
    assert any("nobody told" in mismatch.why for mismatch in compat.match(found, here))
    code, out, _ = commands.attempt("inspect", "service:1")
    assert (code, "(not told)" in out) == (0, True)


@pytest.mark.usefixtures("criu")
def test_what_is_no_checkpoint_is_not_stored(commands: Commands) -> None:
    folder = by_hand(commands.root / "one", memory(5))
    commands.fails(SourceError.exit_code, "checkpoint.img", "push", folder, "a:1", "--engine", "runsc")
    (folder / "checkpoint.img").write_bytes(b"one stream")
    assert (
        "--compression=none" in commands.fails(UnsupportedError.exit_code, "one stream", "push", folder, "a:1", "--engine", "runsc")["hint"]
    )
    (folder / "inventory.img").unlink()
    commands.fails(SourceError.exit_code, "inventory.img", "push", folder, "a:1", "--engine", "criu")
    commands.fails(SourceError.exit_code, "there is no", "push", folder / "none", "a:1", "--engine", "criu")
    commands.fails(2, "not a name", "push", folder, "A:1", "--engine", "criu")
    commands.fails(2, "--engine", "push", folder, "a:1")
    assert commands.run("ls")["snapshots"] == []


def test_without_the_engine_nothing_is_stored(commands: Commands) -> None:
    folder = by_hand(commands.root / "one", memory(5))
    assert "doctor" in commands.fails(UnsupportedError.exit_code, "criu", "push", folder, "a:1", "--engine", "criu")["hint"]


@pytest.mark.parametrize(("name", "probe"), [("criu", ("check",)), ("runsc", ())])
def test_the_real_engines_are_found_tried_and_recorded(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, name: str, probe: Sequence[str]
) -> None:
    require_feature("root", "engines are run by root")
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    monkeypatch.setenv("PATH", usual)
    program = real_engine(name, *probe)
    monkeypatch.setenv("PATH", f"{program.parent}:{usual}")
    found = commands.run("doctor")
    (here,) = [one for one in found["host"]["engines"] if one["name"] == name]
    (finding,) = [one for one in found["findings"] if one["name"] == name]
    assert (finding["state"], here["version"] in finding["detail"], found["ok"]) == ("ok", True, True)
    folder = by_hand(commands.root / "one", memory(50))
    for file in ("checkpoint.img", "pages_meta.img", "pages.img"):
        (folder / file).write_bytes(memory(3))
    commands.run("push", folder, "a:1", "--engine", name)
    shown = commands.run("inspect", "a:1")
    assert (shown["record"]["runtime"]["version"], shown["record"]["runtime"]["format"]) == (here["version"], here["format"])
    assert (shown["record"]["runtime"]["exact"], shown["fits"], shown["why_not"]) == (here["exact"], True, [])


# -- doctor -------------------------------------------------------------------------------------------------------------------------------


def test_doctor_says_what_is_missing_and_how_to_get_it(commands: Commands) -> None:
    found = commands.run("doctor", code=1)
    names = {one["name"]: one for one in found["findings"]}
    assert set(names) == {"criu", "runsc", "root", "CAP_SYS_RESOURCE", "cgroup", "kernel", "cpu", "gpu"}
    assert not found["ok"]
    for name in ("criu", "runsc"):
        assert (names[name]["state"], "apt-get install" in names[name]["fix"]) == ("warn", True)
    assert (found["host"]["engines"], found["host"]["gpu"]) == ([], None)
    assert found["host"]["features"]
    code, out, _ = commands.attempt("doctor")
    assert (code, "apt-get install criu" in out) == (1, True)


def test_doctor_says_of_an_engine_that_is_too_old_that_it_is(commands: Commands, criu: Path) -> None:
    assert commands.run("doctor")["ok"]
    criu.write_text(CRIU.format(version="3.17"))
    (finding,) = [one for one in commands.run("doctor", code=1)["findings"] if one["name"] == "criu"]
    assert (finding["state"], "3.17" in finding["detail"], "4.1 or newer" in finding["fix"]) == ("warn", True, True)


def test_only_who_may_read_a_checkpoint_stores_it(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(Path, "is_dir", refused)
    commands.fails(AccessError.exit_code, "may not look into", "push", "/somewhere", "a:1", "--engine", "criu")
