"""The command on S3: convert, list, mount and read; what it says when S3 is not there; and that nobody else pays for boto3."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.world import World
from tests.weed import Weed

Require = Callable[..., None]


@pytest.fixture
def on_s3(imagefs: World, weed: Weed) -> Iterator[World]:
    imagefs.environment |= weed.environment | {"IMAGEFS_STORE": f"s3://world/{imagefs.root.parent.name}"}
    yield imagefs
    # Before the server goes: a daemon that is left would wait for it.
    assert imagefs.close() == []


@pytest.fixture
def source(imagefs: World) -> Path:
    folder = imagefs.root / "source"
    folder.mkdir()
    (folder / "small").write_text("hello\n")
    (folder / "large").write_bytes(bytes(range(256)) * 20_000)
    return folder


def test_an_image_is_converted_mounted_and_read(on_s3: World, source: Path, require: Require) -> None:
    require("fuse")
    require("root", "to mount")
    first = on_s3.convert(f"dir:{source}", "app:1")
    again = on_s3.convert(f"dir:{source}", "app:2")
    assert again["manifest"] == first["manifest"]
    assert {image["ref"] for image in on_s3.run("images", "--json").json["images"]} == {"app:1", "app:2"}
    point = on_s3.mount("app:1")
    for name in ("small", "large"):
        assert (point / name).read_bytes() == (source / name).read_bytes()
    assert on_s3.stats()["store_gets"] > 0
    on_s3.umount(point)
    on_s3.run("rm", "app:2")
    assert not (on_s3.root / "s3:").exists()
    assert on_s3.run("doctor", "--json").status == 0


def test_what_is_wrong_is_said_on_the_command_line(on_s3: World, source: Path) -> None:
    on_s3.environment["AWS_SECRET_ACCESS_KEY"] = "not-the-secret"
    done = on_s3.attempt("convert", f"dir:{source}", "app:1")
    assert done.status == 12
    assert "SignatureDoesNotMatch; the credentials came from the environment" in done.err
    assert "not-the-secret" not in done.err
    done = on_s3.attempt("images", "--store", "s3:/bucket")
    assert (done.status, "s3://BUCKET/PREFIX" in done.err) == (2, True)


def test_who_uses_a_directory_does_not_wait_for_boto3(tmp_path: Path) -> None:
    code = (
        "import sys; from imagefs.config import load_config; from imagefs.store.opening import open_store;"
        f"open_store(load_config({{'store': {str(tmp_path / 'store')!r}}}).store, create=True).close();"
        "print([name for name in ('boto3', 'botocore', 'obstore', 'urllib3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
