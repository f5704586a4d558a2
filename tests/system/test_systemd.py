"""The units, under a real systemd: mounts outlive the supervisor too, are there after a boot, and go with a stop."""

import random
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.system.booted import SERVICE, SYSTEMD, UNITS, Host
from tests.system.handover import check
from tests.system.readers import content, load
from tests.system.world import missing, require, tool, wait_until

RESTARTS: Final = 10
NAME: Final = "large/3"
EXPOSURE_MAX: Final = 5.0
_LINE: Final = "test {} imagefs {},_netdev,nofail,x-systemd.requires=imagefs.target 0 0\n"


@pytest.fixture
def host(reading_store: str, tmp_path: Path) -> Iterator[Host]:
    """One that is off. Its store can be taken away: ``store`` beside it is a link."""
    require("root", "namespaces")
    if not SYSTEMD.exists():
        missing("no systemd here")
    (tmp_path / "store").symlink_to(reading_store.removeprefix("file://"))
    made = Host(
        tmp_path / "host",
        {
            "store": f"file://{tmp_path}/store",
            "cache": str(tmp_path / "cache"),
            "ram_bytes": "8MiB",
            "cache_bytes": "256MiB",
            "log_level": "info",
        },
    )
    yield made
    made.off()


@pytest.fixture
def up(host: Host) -> Host:
    """One that is up and has a daemon."""
    host.boot()
    host.run("systemctl", "start", SERVICE)
    return host


def unit(host: Host, point: Path) -> str:
    return host.run("systemd-escape", "-p", "--suffix=mount", point).strip()


def small_cache(host: Host) -> None:
    host.run("sed", "-i", "s/256MiB/64MiB/", "/etc/imagefs/config.toml")
    host.run("systemctl", "restart", SERVICE)


def test_restarted_and_killed_under_load(up: Host, tmp_path: Path) -> None:
    small_cache(up)
    point = up.mount(tmp_path / "mnt")
    before = up.mounts()
    keeps = up.run("ls", f"/proc/{up.supervisor()}/fd").split()
    whims = random.Random(1)
    with load(point, ("pread", "mmap", "open"), inside=up.inside) as under_way:
        for number in range(RESTARTS):
            time.sleep(whims.uniform(0.0, 0.3))
            if number % 5 == 4:
                pid = up.supervisor()
                up.signal("KILL")
                up.another(pid)
            else:
                up.run("systemctl", "restart", SERVICE)
        time.sleep(0.5)
        seen = under_way.stop()
    longest = check(seen)
    slow = sorted(took for one in seen for begun, ended in one["waits"] if (took := ended - begun) > 0.1) or [0.0]
    print(f"\n{RESTARTS} restarts, {sum(one['reads'] for one in seen)} operations; waits over 0.1 s: {len(slow)}")
    print(f"p50 {statistics.median(slow):.3f} s, p99 {slow[int(len(slow) * 0.99)]:.3f} s, longest {longest:.3f} s")
    assert longest < 10
    assert up.status()["worker_restarts"] == RESTARTS + 1
    assert up.mounts() == before
    assert up.show(SERVICE, "NFileDescriptorStore") == ["3"]
    assert up.run("ls", f"/proc/{up.supervisor()}/fd").split() == keeps

    up.run("systemctl", "stop", SERVICE)
    assert up.show(SERVICE, "ActiveState", "Result", "NFileDescriptorStore") == ["inactive", "success", "0"]
    assert up.mounts() == {}


def test_a_reload_keeps_the_supervisor_and_mounts_are_seen_by_all(up: Host, tmp_path: Path) -> None:
    point = up.mount(tmp_path / "mnt")
    before = up.status()
    up.run("systemctl", "reload", SERVICE)
    after = up.status()
    assert after["pid"] == before["pid"]
    assert after["worker_pid"] != before["worker_pid"]
    assert up.show(SERVICE, "ActiveState", "StatusText") == ["active", f"process {after['worker_pid']} serves"]
    for pid in (after["pid"], after["worker_pid"]):
        assert up.run("readlink", f"/proc/{pid}/ns/mnt") == up.run("readlink", "/proc/1/ns/mnt")
    assert up.path(point / NAME).read_bytes() == content(NAME)
    # Stopped by its own command, it is not started again.
    up.run("imagefs", "daemon", "stop")
    wait_until(lambda: up.show(SERVICE, "ActiveState", "Result") == ["inactive", "success"], "the service to end")
    assert up.mounts() == {}


def test_a_supervisor_that_hangs_or_is_told_to_leave_is_followed_by_another(up: Host, tmp_path: Path) -> None:
    point = up.mount(tmp_path / "mnt")
    before = up.mounts()
    (up.units / "imagefs.service.d/watchdog.conf").write_text("[Service]\nWatchdogSec=3s\n")
    up.run("systemctl", "daemon-reload")
    up.run("systemctl", "restart", SERVICE)
    # One that is well is left alone.
    time.sleep(4)
    assert up.show(SERVICE, "NRestarts") == ["0"]
    for number, name in enumerate(("STOP", "USR2"), start=1):
        pid = up.supervisor()
        up.signal(name)
        assert up.another(pid) != pid
        assert up.show(SERVICE, "NRestarts") == [str(number)]
        assert up.mounts() == before
        assert up.path(point / NAME).read_bytes() == content(NAME)


def test_with_another_store_nothing_of_the_former_one_is_served(up: Host, tmp_path: Path, reading_store: str) -> None:
    point = up.mount(tmp_path / "mnt")
    before = up.mounts()
    up.run("sed", "-i", f"s,^store.*,store = '{reading_store}',", "/etc/imagefs/config.toml")
    up.run("systemctl", "restart", SERVICE)
    found = up.status()
    assert (found["store"], found["mounts"], found["worker_restarts"]) == (reading_store, [], 0)
    assert len(up.mounts()) == 1
    assert not up.mounts().keys() & before.keys()
    up.run("imagefs", "mount", "test", point)
    assert up.path(point / NAME).read_bytes() == content(NAME)
    assert up.show(SERVICE, "NFileDescriptorStore") == ["3"]


def test_after_a_boot_the_mounts_are_there_also_without_the_store(host: Host, tmp_path: Path) -> None:
    require("erofs")
    points = {"fuse": tmp_path / "a b", "kernel": tmp_path / "native"}
    for point in points.values():
        point.mkdir()
    lines = [_LINE.format(str(point).replace(" ", "\\040"), f"ro,mode={mode}") for mode, point in points.items()]
    (host.place / "etc/fstab").write_text("".join(lines))

    def looked_at() -> None:
        found = host.mounts()
        assert [found[str(point)][0] for point in points.values()] == ["fuse.imagefs", "overlay"], host.log()
        for point in points.values():
            assert host.path(point / NAME).read_bytes() == content(NAME)

    host.boot()
    assert host.run("systemctl", "is-system-running").strip() == "running"
    looked_at()
    there = host.mounts()
    host.run("systemctl", "restart", SERVICE)
    # What is mounted has nothing to do with a restart. And nothing is mounted twice.
    host.run("mount", "-a", "-t", "imagefs")
    assert host.mounts() == there
    looked_at()
    wait_until(lambda: '"objects_complete": 0' not in host.run("imagefs", "stats", "--json"), "the file to be on disk")

    host.off()
    (tmp_path / "store").unlink()
    host.boot()
    assert host.run("systemctl", "is-system-running").strip() == "running"
    looked_at()

    # Both are unmounted by mount(8)'s own means; the daemon finds out.
    host.run("systemctl", "stop", unit(host, points["fuse"]))
    host.run("umount", points["kernel"])
    wait_until(lambda: host.status()["mounts"] == [], "the daemon to notice")


def test_the_examples_mount_and_unmount(up: Host) -> None:
    # Unescaped, the name of an instance has a slash for a dash.
    for name, before, after in (("srv-model.mount", "model:1", "test"), ("imagefs-mount@.service", "%I", "%i")):
        text = (UNITS / "examples" / name).read_text()
        assert before in text
        (up.units / name).write_text(text.replace(before, after))
    up.run("systemctl", "daemon-reload")
    up.run("mkdir", "-p", "/srv/model")
    places = {"srv-model.mount": Path("/srv/model"), "imagefs-mount@test:latest.service": Path("/srv/images/test:latest")}
    for name, place in places.items():
        up.run("systemctl", "start", name)
        assert up.path(place / NAME).read_bytes() == content(NAME)
    up.run("systemctl", "restart", SERVICE)
    for name, place in places.items():
        assert up.show(name, "ActiveState") == ["active"]
        assert up.path(place / NAME).read_bytes() == content(NAME)
        up.run("systemctl", "stop", name)
        assert str(place) not in up.mounts()


def test_the_units_are_what_systemd_takes_for_good(tmp_path: Path) -> None:
    require("systemd-analyze")
    for path in [*UNITS.glob("*.*"), *(UNITS / "examples").glob("*.*")]:
        if path.is_file():
            (tmp_path / path.name).write_text(path.read_text().replace("/usr/local/bin/imagefs", "/bin/true"))
    (tmp_path / "containerd.service.d").mkdir()
    drop_in = (UNITS / "examples/containerd.service.d/imagefs.conf").read_text()
    (tmp_path / "containerd.service.d/imagefs.conf").write_text(drop_in)
    (tmp_path / "containerd.service").write_text("[Service]\nExecStart=/bin/true\n")
    (tmp_path / "imagefs-mount@.service").rename(tmp_path / "imagefs-mount@test.service")
    names = sorted(path.name for path in tmp_path.glob("*.*") if path.is_file())
    assert len(names) == 5
    said = tool("/bin/sh", "-c", 'cd "$0" && systemd-analyze verify --man=no "$@" 2>&1', tmp_path, *names)
    assert said == b""
    said = tool("systemd-analyze", "security", "--no-pager", "--offline=true", tmp_path / SERVICE)
    level = re.search(r"exposure level for imagefs.service: ([\d.]+)", said.decode())
    assert level is not None
    assert float(level[1]) <= EXPOSURE_MAX
