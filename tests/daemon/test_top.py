"""``imagefs top`` and ``imagefs stats --watch``: real daemons, real readers, what is printed."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagefs.daemon import client
from imagefs.errors import DaemonError, UsageError
from imagefs.fuse.readers import program_of
from imagefs_cli import watching
from imagefs_cli.main import main
from imagefs_cli.top import document
from tests.daemon.place import Place
from tests.fuse.images import noise
from tests.system.world import wait_until

BINARY = Path(sys.executable).parent / "imagefs"
SIZE = 2_000_000
READER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
print("open", flush=True)
for line in sys.stdin:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    print(len(os.pread(file, 1 << 30, 0)), flush=True)
"""


def command(place: Place, *arguments: str) -> list[str]:
    config = place.config
    return [str(BINARY), *arguments, "--store", config.store, "--cache", str(config.cache), "--runtime", str(config.runtime)]


def start(place: Place, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command(place, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def documents(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


class Reader:
    """Reads a file again and again when told to, with nothing left in the page cache."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "open\n"

    def read(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("mode", ["fuse", "kernel"])
def test_who_reads_is_named_with_cgroup_mount_and_tier(place: Place, mode: str) -> None:
    maker = place.maker()
    maker.file("file", noise(SIZE, 1))
    maker.file("other", noise(SIZE, 2))
    maker.publish()
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test", mode=mode)
    early = Reader(point / "file")
    top = start(place, "top", "--json", "--every", "0.3")
    late = None
    try:
        documents(top, 1)
        late = Reader(point / "other")
        assert early.read() == late.read() == SIZE
        programs: dict[int, dict[str, float]] = {}
        mounts: dict[str, float] = dict.fromkeys(("ram", "ssd", "store"), 0.0)
        ids = {early.process.pid, late.process.pid}
        for _ in range(20):
            found = documents(top, 1)[0]
            for row in found["programs"]:
                assert row["mountpoints"] == [str(point)]
                if row["pid"] in ids:
                    assert (row["cgroup"], row["command"]) == program_of(row["pid"])[1]
                for tier, rate in row["bytes_a_second"].items():
                    programs.setdefault(row["pid"], dict.fromkeys(mounts, 0.0))[tier] += rate * found["seconds"]
            for row in found["mounts"]:
                assert (row["mountpoints"], row["modes"], row["ref"]) == ([str(point)], [mode], "test")
                for tier, rate in row["bytes_a_second"].items():
                    mounts[tier] += rate * found["seconds"]
            if sum(mounts.values()) >= 2 * SIZE - 1:
                break
        assert round(sum(mounts.values())) == 2 * SIZE
        assert mounts["store"] > 0
        assert round(sum(sum(row.values()) for row in programs.values())) == 2 * SIZE
        # Both are the same program in the same cgroup, so one row, named by the one that opened last.
        assert set(programs) <= ids
        assert documents(top, 1)[0]["kernel_mode"] == (mode == "kernel")
    finally:
        top.terminate()
        top.communicate()
        early.end()
        if late is not None:
            late.end()
    read = client.stats(place.config)["mounts"][0]["bytes_read"]
    assert sum(read.values()) == 2 * SIZE
    client.umount(place.config, point)


def test_once_for_people(place: Place) -> None:
    maker = place.maker()
    maker.file("file", noise(SIZE, 1))
    maker.publish()
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test", mode="kernel")
    done = subprocess.run(command(place, "top", "--once", "--every", "0.1"), capture_output=True, text=True, timeout=30, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["RAM/s", "SSD/s", "STORE/s", "MODE", "IMAGE", "MOUNTED", "AT"]
    assert lines[1].split() == ["0", "B", "0", "B", "0", "B", "kernel", "test", str(point)]
    assert "CGROUP" in done.stdout
    assert "kernel reads what is on SSD by itself" in done.stdout
    client.umount(place.config, point)


def test_rates_a_line_a_period_as_documents_and_on_a_terminal(place: Place) -> None:
    maker = place.maker()
    maker.file("file", noise(SIZE, 1))
    maker.publish()
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test")
    watching_ = start(place, "stats", "--watch", "0.2", "--count", "10", "--json")
    try:
        first = documents(watching_, 1)[0]
        assert sum(first["rates"]["bytes_read"].values()) == 0
        assert (point / "file").stat().st_size == len((point / "file").read_bytes())
        wait_until(lambda: sum(documents(watching_, 1)[0]["rates"]["bytes_read"].values()) > SIZE, "the rate")
    finally:
        watching_.kill()
        watching_.communicate()
    done = subprocess.run(command(place, "stats", "--count", "2", "--watch", "0.1"), capture_output=True, text=True, timeout=30, check=True)
    assert len(done.stdout.splitlines()) == 2
    assert all("requests/s  read/s ram 0 B" in line and "mounts 1" in line for line in done.stdout.splitlines())
    shown = on_terminal(command(place, "stats", "--count", "1", "--watch", "0.1"))
    assert "a second" in shown
    assert "bytes_read.store" in shown
    assert str(point) in on_terminal(command(place, "top", "--every", "0.1"), until="CGROUP")
    client.umount(place.config, point)


def on_terminal(line: list[str], until: str = "") -> str:
    """Run a command on a terminal; return what it writes. ``until``: what it is sent Ctrl-C at."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(line, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "LINES": "80", "COLUMNS": "200"})
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 65536):
            said += chunk
            if until and until in said.decode(errors="replace"):
                process.send_signal(signal.SIGINT)
    except OSError:
        pass  # That is how the end of a terminal is told.
    os.close(ours)
    assert process.wait(30) == 0
    return said.decode()


def test_ctrl_c_is_how_it_ends(place: Place) -> None:
    maker = place.maker()
    maker.publish()
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test")
    for arguments in (("top", "--json", "--every", "0.1"), ("stats", "--json", "--watch", "0.1")):
        process = start(place, *arguments)
        documents(process, 1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert process.returncode == 0
    client.umount(place.config, point)


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats", "--watch", "0"],
        ["stats", "--watch", "nan"],
        ["stats", "--watch", "-1"],
        ["stats", "--watch", "1", "--prometheus"],
        ["stats", "--count", "0"],
        ["top", "--every", "0"],
        ["top", "--every", "11"],
    ],
)
def test_what_cannot_be_watched_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == UsageError.exit_code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [["top"], ["stats", "--watch"]])
def test_without_a_daemon(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    place = [f"--{name}={tmp_path}/{name}" for name in ("store", "cache", "runtime")]
    assert main([*arguments, *place]) == DaemonError.exit_code
    assert capsys.readouterr().out == ""


def test_a_counter_that_began_anew_is_no_negative_rate() -> None:
    assert watching.rates({"store_gets": 100, "bytes_read": {"ram": 10}}, {"store_gets": 4, "bytes_read": {"ram": 14, "ssd": 2}}, 2) == {
        "store_gets": 2,
        "bytes_read": {"ram": 2, "ssd": 1},
    }


def test_another_worker_counts_from_nothing() -> None:
    tally = {"ram": 50, "ssd": 0, "store": 0}
    mount = {"manifest": "m", "mountpoint": "/m", "ref": "r", "mode": "fuse", "bytes_read": tally}
    program = {"manifest": "m", "mountpoints": ["/m"], "cgroup": "/c", "command": "x", "pid": 1, "bytes_read": tally}
    answer = {"workers": [1], "mounts": [mount], "programs": [program]}
    assert document(answer, answer, 1)["programs"] == []
    found = document(answer, {**answer, "workers": [2]}, 2)
    assert found["mounts"][0]["bytes_a_second"]["ram"] == found["programs"][0]["bytes_a_second"]["ram"] == 25
