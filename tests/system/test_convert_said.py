"""What a conversion says while it runs and when it is done, what memory it takes, and what it leaves on S3 when it is interrupted."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.corpus import rawtar as t
from tests.corpus.features import ROOT, noise
from tests.corpus.oci import Image, Layer, layout, simple
from tests.store.conftest import OWN
from tests.store.fake_s3 import FakeS3, Reply, Request, error
from tests.system.world import DEADLINE, World, wait_until

MIB = 1 << 20


def large(folder: Path, blocks: int) -> Path:
    """Make an image of one file of so many times 8 MiB, no frame of which is like another; it costs little to make. Return its layout."""
    block = noise(8 * MIB)
    parts = [part for number in range(blocks) for part in (b"%08d" % number, block[8:])]
    tar = b"".join([ROOT, t.header(b"large", size=blocks * len(block)), *parts, bytes(1024)])
    return simple(folder / "layout", Layer(tar, ""))


def test_the_figures_are_those_of_the_image(imagefs: World, tmp_path: Path) -> None:
    lower, upper = (
        t.archive(ROOT, t.file(b"a", noise(3 * MIB)), t.file(b"b", b"1")),
        t.archive(t.file(b"c", noise(500_000)), t.whiteout(b"b")),
    )
    source = layout(tmp_path / "layout", Image([Layer(lower), Layer(upper, "+zstd")]))
    figures = imagefs.convert(f"oci:{source}", "app")
    assert (figures["ref"], figures["layers"], figures["files"]) == ("app:latest", 2, 2)
    assert figures["bytes_in"] == len(Layer(lower).blob) + len(Layer(upper, "+zstd").blob)
    assert figures["bytes_logical"] == 3 * MIB + 500_000
    assert figures["new_bytes"] > 3 * MIB
    assert figures["shared_bytes"] == 0
    assert re.fullmatch(r"[0-9a-f]{64}", figures["manifest"])
    assert len(figures["seconds"]) > 2
    assert all(seconds >= 0 for seconds in figures["seconds"].values())
    again = imagefs.convert(f"oci:{source}", "app")
    assert (again["new_bytes"], again["manifest"]) == (0, figures["manifest"])
    assert again["shared_bytes"] > 0
    done = imagefs.run("convert", f"oci:{source}", "app")
    assert figures["manifest"] in done.out
    assert "0 B new" in done.out
    assert re.search(r"chose \S+: 2 layers, linux/\w+", done.err)


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(imagefs: World, tmp_path: Path) -> None:
    """With bytes, rate and stage."""
    source = large(tmp_path, 30)
    ours, theirs = pty.openpty()
    imagefs.environment["TERM"] = "xterm-256color"
    imagefs.environment["COLUMNS"] = "120"
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "wb") as terminal:
        watched = subprocess.Popen(
            [*imagefs.command, "convert", f"oci:{source}", "app"], env=imagefs.env, cwd=imagefs.root, stderr=terminal
        )
    shown = b""
    end = time.monotonic() + DEADLINE
    while watched.poll() is None and time.monotonic() < end:
        if select.select([ours], [], [], 0.05)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
    assert watched.wait(timeout=DEADLINE) == 0
    os.close(ours)
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode(errors="replace")
    assert re.search(r"(read|layers|pack|tree)\w*\s", text), text
    assert re.search(r"\d+(\.\d+)?/\d+(\.\d+)? MB", text), text
    assert re.search(r"(MB|kB|GB)/s", text), text
    process = imagefs.start("convert", f"oci:{source}", "other")
    assert "\x1b" not in process.communicate(timeout=DEADLINE)[1], "not into a pipe"


def test_memory_does_not_grow_with_the_image(imagefs: World, tmp_path: Path) -> None:
    """A file of 400 MB goes through what 400 MB may not fill; nothing of it lies in the scratch directory meanwhile."""
    source = large(tmp_path, 50)
    process = imagefs.start("convert", f"oci:{source}", "large", "--jobs", "2", "--json")
    peak = 0
    end = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max(peak, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
        time.sleep(0.02)
    assert json.loads(process.communicate(timeout=DEADLINE)[0])["bytes_logical"] == 400 * MIB
    assert 30 << 10 < peak < 400 << 10, f"{peak >> 10} MiB"
    assert imagefs.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_on_s3_it_takes_back_what_it_has_begun(imagefs: World, tmp_path: Path, number: signal.Signals) -> None:
    """Nothing is published, and no upload in parts is left half done: nobody would see it, and somebody would pay for it."""
    source = simple(tmp_path / "layout", Layer(t.archive(ROOT, t.file(b"large", noise(20 * MIB))), ""))
    interrupted = threading.Event()
    with FakeS3() as server:

        def hold(request: Request) -> Reply | None:
            if request.query.get("partNumber") != "2":
                return None
            interrupted.wait(DEADLINE)
            return error(403, "AccessDenied")

        imagefs.environment |= OWN | {"AWS_ENDPOINT_URL_S3": server.endpoint, "IMAGEFS_STORE": "s3://bucket/p"}
        server.before = hold
        process = imagefs.start("convert", f"oci:{source}", "app", "--json")
        wait_until(lambda: any(request.query.get("partNumber") == "2" for request in server.requests), "the second part", DEADLINE)
        assert len(server.uploads) == 1
        process.send_signal(number)
        interrupted.set()
        out, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert out == "" or "error" in json.loads(out)
        assert server.uploads == {}
        assert [key for key in server.objects if "/refs/" in key or "/manifests/" in key or "/blobs/" in key] == []
        assert imagefs.leftovers() == []
