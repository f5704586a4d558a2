"""The bundle for a bug report: what is in it, in every state of the daemon, and that no secret is."""

import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.errors import AccessError, UsageError
from imagefs.mount.bind import unmount
from imagefs_cli.main import main
from imagefs_cli.report import kernel_messages
from tests.daemon.place import Place

BINARY = Path(sys.executable).parent / "imagefs"

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "plantedAWSsecret/0123456789abcdef+ABCDEF",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED012345678",
    "AWS_SESSION_TOKEN": "planted-session-token",
    "HTTPS_PROXY": "http://proxyuser:planted-proxy-password@proxy:3128",
    "MY_API_KEY": "planted-api-key",
    "IMAGEFS_REGISTRY_TOKEN": "planted-registry-token",
    "AWS_ENDPOINT_URL_S3": "http://planted-user:planted-url-password@127.0.0.1:1/?q=planted-query",
}
LOG_LINES = [
    json.dumps({"event": "x", "error": "asked https://h/k?X-Amz-Signature=planted-signature&a=b"}),
    json.dumps({"event": "x", "error": 'answer {"password": "planted-in-json"}'}),
    "Authorization: Bearer planted-bearer-token",
    "the daemon's own: planted-in-the-daemons-environment",
    "-----BEGIN PRIVATE KEY-----\nplanted-pem\n-----END PRIVATE KEY-----",
]


def members(path: Path) -> dict[str, str]:
    found = {}
    with tarfile.open(path) as tar:
        for entry in tar:
            file = tar.extractfile(entry)
            assert file is not None
            found[entry.name.partition("/")[2]] = file.read().decode()
    return found


def report(place: Place, target: Path, store: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    config = place.config
    where = ["--store", store or config.store, "--cache", str(config.cache), "--runtime", str(config.runtime)]
    command = [str(BINARY), "doctor", "--json", "--report", str(target), *where]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment})


def mounted(place: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAEMON_PASSWORD", "planted-in-the-daemons-environment")
    place.maker().publish()
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test")
    monkeypatch.delenv("DAEMON_PASSWORD")
    return point


def test_it_tells_what_is_needed_and_no_secret(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = mounted(place, monkeypatch)
    folder = place.config.instance_dir()
    with (folder / "daemon.log").open("a") as log:
        log.write("\n".join(LOG_LINES) + "\n")
    (folder / "crash.json").write_text(json.dumps({"how": "x", "log": "token=planted-in-crash"}))
    target = tmp_path / "report.tar.gz"
    done = report(place, target, **PLANTED)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    found = members(target)
    daemon = f"daemons/{folder.name}"
    assert set(found) == {
        *("README.txt", "versions.json", "config.json", "environment.json", "mounts.txt", "host.txt", "journal.txt", "kernel.txt"),
        *("findings.json", *(f"{daemon}/{name}" for name in ("status.json", "stats.json", "crash.json", "mounts.json", "daemon.log"))),
    }
    everything = "\n".join([*found, *found.values()])
    assert [secret for secret in everything.split() if "planted" in secret.lower()] == []
    for value in PLANTED.values():
        assert value not in everything

    assert json.loads(found["findings.json"]) == json.loads(done.stdout)["findings"]
    status = json.loads(found[f"{daemon}/status.json"])
    assert status["mounts"][0]["mountpoint"] == str(point)
    assert json.loads(found[f"{daemon}/stats.json"])["mounts"]
    assert json.loads(found["config.json"])["store"] == place.config.store
    assert json.loads(found["environment.json"])["AWS_SECRET_ACCESS_KEY"] == "***"
    assert json.loads(found["environment.json"])["AWS_ENDPOINT_URL_S3"] == "http://***@127.0.0.1:1/?q=***"
    assert json.loads(found["versions.json"])["packages"]["trio"]
    assert f" {point} " in found["mounts.txt"]
    assert '"event": "started"' in found[f"{daemon}/daemon.log"]
    assert "look into it before you send it" in done.stderr
    client.umount(place.config, point)


def test_it_comes_about_while_the_daemon_says_nothing(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = mounted(place, monkeypatch)
    folder = place.config.instance_dir()
    place.kill()
    (folder / "mounts.json").write_text("{")
    (folder / "daemon.log").write_bytes(b"\xff\n" * (400 << 10) + b"the end\n")
    target = tmp_path / "report.tar.gz"
    report(place, target, "https://planted-user:planted-password@host/prefix?key=planted-query")
    found = members(target)
    assert "https://***@host/prefix?key=***" in found["findings.json"]
    assert "planted" not in "\n".join(found.values())
    assert found[f"daemons/{folder.name}/status.json"].startswith("could not be had: DaemonError: no daemon is running")
    assert found[f"daemons/{folder.name}/mounts.json"].startswith("could not be had: ")
    log = found[f"daemons/{folder.name}/daemon.log"]
    assert log.endswith("the end\n")
    assert log.count("\n") <= 1 + (512 << 10) // 2
    # Nobody mounts here again, who would take away what the dead one left.
    client.umount(place.config, point)
    unmount(folder / "fuse", lazy=True)


def test_a_file_that_is_there_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = [f"--{name}={tmp_path}/{name}" for name in ("store", "cache", "runtime")]
    target = tmp_path / "there"
    target.write_text("mine")
    assert main(["doctor", "--report", str(target), *place]) == UsageError.exit_code
    assert target.read_text() == "mine"
    assert main(["doctor", "--report", str(tmp_path / "none/x"), *place]) == AccessError.exit_code
    assert "cannot write" in capsys.readouterr().err


def test_the_kernels_messages_are_those_of_what_is_used(tmp_path: Path) -> None:
    # One record a read, as the kernel has it; a FIFO gives what there is, which is one here.
    fifo = tmp_path / "kmsg"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    os.write(keep, b"4,1,1500000,-;overlayfs: missing 'lowerdir'\n SUBSYSTEM=x\n")
    assert kernel_messages(str(fifo)) == "[1.500] overlayfs: missing 'lowerdir'\n"
    os.write(keep, b"4,1,1500000,-;usb 1-1: new device\n")
    assert kernel_messages(str(fifo)) == ""
    os.close(keep)
