"""``mount.imagefs`` by itself: how it may be called, and its exit codes. That mount(8) and systemd call it so is in ``tests/system``."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from imagefs_cli import mount_helper
from imagefs_cli.mount_helper import OptionError, main, parsed
from tests.system.world import World, mounts_below


@pytest.mark.parametrize(
    ("arguments", "fields", "flags"),
    [
        ([], {}, {}),
        (["-o", "rw"], {}, {}),
        (["-n", "-o", "rw,_netdev,nofail,noauto,x-systemd.requires=imagefs.target,x-a=b,X-mount.mkdir,comment=x,defaults"], {}, {}),
        (["-o", "ro,noatime,norelatime,lazytime,exec,sync,auto"], {}, {}),
        (["-o", "mode=kernel,upper=/a,dev,suid"], {"mode": "kernel", "upper": "/a", "dev": True, "suid": True}, {}),
        (["-o", "norecord"], {"record": False}, {}),
        (["-o", "profile-label=a b"], {"label": "a b"}, {}),
        (["-o", "dev,nodev,nosuid"], {"dev": False, "suid": False}, {}),
        (["-o", 'upper="/a,b c",rw'], {"upper": "/a,b c"}, {}),
        (["-o", "store=s3://b/p?x=1", "-o", "cache=/c"], {}, {"store": "s3://b/p?x=1", "cache": "/c"}),
        (["-s", "-o", "whatever"], {}, {}),
        (["-o", 'profile-label="a,b"",c",,suid,'], {"label": "a,b,c", "suid": True}, {}),
        (["-o", ""], {}, {}),
        (["-t", "imagefs.sub"], {}, {}),
        (["-nvo", "dev"], {"dev": True}, {}),
        (["-odev"], {"dev": True}, {}),
    ],
)
def test_how_it_may_be_called(arguments: list[str], fields: dict[str, Any], flags: dict[str, str]) -> None:
    # Options come before, between or after what they are for.
    for line in ([*arguments, "app:1", "/mnt"], ["app:1", *arguments, "/mnt"], ["app:1", "/mnt", *arguments]):
        wanted = parsed(line)
        assert (wanted.ref, wanted.mountpoint, wanted.flags, wanted.fields) == ("app:1", "/mnt", flags, {"mode": "auto"} | fields)


@pytest.mark.parametrize(
    "arguments",
    [
        ["app:1"],
        ["app:1", "/mnt", "/other"],
        ["app:1", "/mnt", "-z"],
        ["app:1", "/mnt", "--verbose"],
        ["app:1", "/mnt", "-o"],
        ["app:1", "--", "/mnt", "-v"],
        ["app:1", "/mnt", "-o", 'upper="/a,b'],
        ["app:1", "/mnt", "-o", "noexec"],
        ["app:1", "/mnt", "-o", "mode=fast"],
        ["app:1", "/mnt", "-o", "upper=relative"],
        ["app:1", "/mnt", "-o", "store="],
        ["app:1", "/mnt", "-o", "profile-label="],
        ["app:1", "/mnt", "-o", "ro,upper=/a"],
        ["app:1", "/mnt", "-o", "upper=/a,rw", "-o", "ro"],
        ["app:1", "/mnt", "-o", "uid=0"],
    ],
)
def test_how_it_may_not_be_called(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError):
        parsed(arguments)
    assert main(arguments) == mount_helper.EXIT_USAGE
    assert capsys.readouterr().err.startswith("mount.imagefs: ")


def _helper(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from imagefs_cli.mount_helper import main; sys.exit(main())"
    command = [world.interpreter, "-c", code, *arguments]
    return subprocess.run(command, env=world.env, capture_output=True, text=True, timeout=60, check=False)


def test_its_exit_codes(imagefs: World, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("content")
    point = imagefs.root / "mnt"
    imagefs.convert(f"dir:{tmp_path}/source", "app:1")
    imagefs.convert(f"dir:{tmp_path}/source", "app:2")
    assert _helper(imagefs, "app:1", str(point)).returncode == mount_helper.EXIT_FAILED
    point.mkdir()
    missing = _helper(imagefs, "app:3", str(point), "-o", "rw")
    assert (missing.returncode, missing.stdout) == (mount_helper.EXIT_FAILED, "")
    fake = _helper(imagefs, "app:1", str(point), "-f", "-v")
    assert (fake.returncode, fake.stdout) == (0, "mount.imagefs: nothing mounted, as asked for\n")
    assert mounts_below(point) == []
    assert _helper(imagefs, "app:1", str(point), "-o", "config=/nonexistent").returncode == mount_helper.EXIT_USAGE
    done = _helper(imagefs, "app:1", str(point), "-o", "rw,nodev,mode=fuse")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (point / "file").read_text() == "content"
    # As it is there already; another image is not.
    assert _helper(imagefs, "app:1", str(point)).returncode == 0
    assert _helper(imagefs, "app:2", str(point)).returncode == mount_helper.EXIT_FAILED
    assert len(mounts_below(point)) == 1
    imagefs.umount(point)
