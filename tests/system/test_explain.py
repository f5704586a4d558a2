"""``imagefs explain`` of real mounts: what it says is what was done, in both modes, over a real S3 server behind a link with a latency."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.explain.trace_format import Trace
from tests.faults import FaultProxy
from tests.fuse.images import noise
from tests.system.world import World, require, wait_until
from tests.weed import serving

DELAY = 0.04
FILES = ("bin/first", "lib/second", "lib/deep/third")
SIZE = 3_000_000
READER = """
import sys
for path in sys.argv[1:]:
    assert len(open(path, "rb").read())
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], FaultProxy]]:
    """A store behind a link, with an image of three files that do not lie near each other; what a world needs in its environment."""
    require("root", "mounts through /dev/fuse as root")
    folder = tmp_path_factory.mktemp("far")
    with serving(folder / "weed") as server, FaultProxy(server.endpoint.removeprefix("http://")) as link:
        maker = World(folder / "maker")
        maker.environment |= server.environment | {"IMAGEFS_STORE": "s3://tests/explain"}
        for number, name in enumerate((*FILES, "never")):
            path = maker.root / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(noise(SIZE, number))
        (maker.root / "source/tiny").write_text("in the tree")
        maker.convert(f"dir:{maker.root}/source")
        assert maker.close() == []
        link.set(delay=DELAY)
        yield {**maker.environment, "AWS_ENDPOINT_URL_S3": link.url}, link


@pytest.fixture
def world(far: tuple[dict[str, str], FaultProxy], imagefs: World) -> World:
    imagefs.environment |= far[0]
    return imagefs


@contextlib.contextmanager
def program(point: Path, *names: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that reads files one after the other and stays."""
    paths = [str(point / name) for name in names]
    with subprocess.Popen([sys.executable, "-c", READER, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        yield process
        process.kill()


def explained(world: World, *arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = world.run("explain", *arguments, "--json").json
    return found


@pytest.mark.parametrize("mode", ["fuse", "kernel"])
def test_a_cold_start_is_explained(world: World, mode: str) -> None:
    # Others have recorded starts of this image.
    point = world.mount("test", "mnt", "--no-prefetch", mode=mode)
    with program(point, *FILES) as process:
        found = explained(world, point)
        assert (found["ended"], found["mode"], found["mountpoint"]) == ("running", mode, str(point))
        files = {row["path"]: row for row in found["files"]}
        assert set(files) == {f"/{name}" for name in FILES}
        readers = {row["pid"]: index for index, row in enumerate(found["processes"])}
        for row in files.values():
            assert row["touched"] == row["fetched"] == SIZE
            assert row["reads_by_tier"]["store"] >= 1
            assert set(row["reads_by_profile"]) <= {"no_profile", "local"}
            assert row["process"] == readers[process.pid]
        # Each file waits for an answer at least once, one after the other; all parts add up.
        path = found["critical_path"]
        assert path["for_the_store"] >= len(FILES)
        assert path["waits"]["first_byte"] >= len(FILES) * 0.9e6 * DELAY
        assert path["waits"]["decode"] + path["waits"]["verify"] > 0
        assert sum(path["waits"].values()) + path["program_us"] == found["length_us"]
        assert found["length_us"] < 60e6
        gets = found["gets"]
        assert sum(get["content"] for get in gets) >= len(FILES) * SIZE
        for get in gets:
            assert get["outcome"] in {"asked", "late", "ahead"}
            assert 0 <= get["queued_us"] <= get["sent_us"] <= get["first_us"] <= get["arrived_us"] <= get["decoded_us"]
        assert any(get["first_us"] < get["arrived_us"] for get in gets if get["end"] - get["start"] >= 512 * 1024)
        assert found["link"]["latency_us"] >= 0.9e6 * DELAY
        assert found["bytes"]["stored"] == sum(get["end"] - get["start"] for get in gets) > 0
        assert found["advice"]["code"] == "start-again"
    shown = world.run("explain", point).out
    assert "Start it again" in shown
    assert "/lib/deep/third" in shown
    world.umount(point)
    # What was mounted there is still known, and by the image's name.
    kept = explained(world, point)
    assert kept["ended"] == "unmounted"
    assert {row["path"] for row in kept["files"]} == {f"/{name}" for name in FILES}
    assert explained(world, "test")["began"] == kept["began"]
    assert len(world.run("explain", "--list", "--json").json) == 1


def test_two_starts_a_trace_a_page_and_a_document(world: World, tmp_path: Path) -> None:
    for name in ("one", "two"):
        # Other tests have recorded starts of this image that read more.
        point = world.mount("test", name, "--no-prefetch")
        with program(point, FILES[0]):
            pass
        world.umount(point)
    both = explained(world, "test", "--compare", "test")
    assert both["start"]["mountpoint"].endswith("/two")
    assert both["other"]["mountpoint"].endswith("/one")
    # The second time the content is here.
    assert both["difference"]["store_bytes"] < 0
    assert both["start"]["bytes"]["stored"] == 0
    trace, document = tmp_path / "trace", tmp_path / "start.json"
    world.run("explain", "test", "--start", "2", "--perfetto", trace, "--export", document)
    found = Trace(trace.read_bytes())
    assert any(one.name == f"/{FILES[0]}" for one in found.slices)
    assert found.arrows
    # A host that has nothing of it reads the same.
    assert explained(world, document)["length_us"] == both["other"]["length_us"]
    assert json.loads(document.read_bytes())["kind"] == "start"


def test_a_page(world: World, tmp_path: Path) -> None:
    pytest.importorskip("imagefs_cli.explain_page")
    point = world.mount()
    with program(point, FILES[0]):
        world.run("explain", point, "--html", tmp_path / "page.html")
    assert "<html" in (tmp_path / "page.html").read_text()


def test_what_was_not_recorded_is_said(world: World) -> None:
    point = world.mount("test", "mnt", "--no-record")
    done = world.attempt("explain", point)
    assert done.status == 6
    assert "no start of" in done.err
    nowhere = world.root / "nowhere"
    nowhere.mkdir()
    assert world.attempt("explain", nowhere).status == 10
    assert world.attempt("explain", "unknown:1").status == 6


def test_a_mount_whose_daemon_is_gone_does_not_hang_the_command(world: World) -> None:
    point = world.mount()
    with program(point, FILES[0]):
        pass
    before = explained(world, point)
    status = world.run("daemon", "status", "--json").json
    for pid in (status["pid"], status["worker_pid"]):
        subprocess.run(["kill", "-9", str(pid)], check=False)
    wait_until(lambda: world.attempt("daemon", "status").status == 11, "the daemon to be gone")
    # What was written when it was asked last is what is left.
    after = world.run("explain", point, "--json", seconds=20).json
    assert after["began"] == before["began"]
