"""``imagefs snapshot`` as tests run it: in this process, over a store of their own; and checkpoints and records as others leave them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from imagefs.convert.convert import convert
from imagefs.format.manifest import Manifest
from imagefs.store.base import ObjectStore
from imagefs.store.images import get_manifest, put_manifest
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref, publish
from imagefs_cli.main import main
from snapshotstore import manifest
from snapshotstore.manifest import Runtime
from snapshotstore.repository import push
from tests.fuse.images import noise
from tests.snapshots.checkpoints import checkpoint, map_of, record
from tests.system.world import require as require_feature

MEMORY_FILE = "engine/pages-1.img"

CRIU = """#!/bin/sh
case $1 in
--version) echo "Version: {version}" ;;
check) echo "Looks good." ;;
esac
"""


class Commands:
    """Runs commands of this process, over a store, a cache and a runtime of a test's own."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Make the store."""
        self.root = root
        self._capsys = capsys
        self.store = open_store(f"file://{root}/store", create=True)

    def attempt(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Run ``imagefs snapshot``; return the exit code, and what was printed and said."""
        self._capsys.readouterr()
        places = ["--store", f"{self.root}/store", "--cache", f"{self.root}/cache", "--runtime", f"{self.root}/run"]
        code = main(["snapshot", *map(str, arguments), *places])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def run(self, *arguments: str | Path, code: int = 0) -> Any:
        """Run it with ``--json``, to this exit code; return the one document."""
        found, out, err = self.attempt(*arguments, "--json")
        assert found == code, err
        return json.loads(out)

    def fails(self, code: int, words: str, *arguments: str | Path) -> dict[str, Any]:
        """Run what has to fail so, for people and for programs."""
        found, out, err = self.attempt(*arguments)
        assert (found, out) == (code, ""), err
        assert words in err
        document = self.run(*arguments, code=code)["error"]
        assert document["exit_code"] == code
        return dict(document)

    def push(self, name: str, data: bytes, ref: str, **changes: Any) -> str:
        """Store a checkpoint with this memory; return its manifest."""
        made = record(**({"runtime": Runtime(engine="criu", version="4.1.1", format="criu-1")} | changes))
        return push(self.store, checkpoint(self.root / name, data), made, Ref.parse(ref)).manifest

    def image(self, ref: str) -> str:
        """Store an image; return its manifest."""
        folder = self.root / f"image-{ref.replace(':', '-')}"
        folder.mkdir()
        (folder / "file").write_bytes(noise(5000, 8))
        return convert(f"dir:{folder}", Ref.parse(ref), self.store, jobs=1).manifest


@pytest.fixture
def commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """Without any engine on this host."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    made = Commands(tmp_path, capsys)
    yield made
    made.store.close()


@pytest.fixture
def criu(commands: Commands) -> Path:
    """A program that says that it is CRIU, on this host's ``PATH``."""
    require_feature("root", "engines are run by root")
    program = commands.root / "bin/criu"
    program.parent.mkdir()
    program.write_text(CRIU.format(version="4.1.1"))
    program.chmod(0o755)
    return program


def by_hand(folder: Path, data: bytes) -> Path:
    """Make what CRIU itself leaves: one directory of files."""
    made = checkpoint(folder, data)
    (made / "engine/inventory.img").write_bytes(noise(60, 7))
    return made / "engine"


def altered(store: ObjectStore, digest: str, ref: str, text: str) -> None:
    """Publish a snapshot again, with another text in place of its record."""
    found: Manifest = get_manifest(store, digest)
    name, _ = put_manifest(store, structs.replace(found, annotations=found.annotations | {manifest.ANNOTATION: text}))
    publish(store, Ref.parse(ref), name)


def newer(store: ObjectStore, digest: str, ref: str, kernel: str = "6.18.1") -> None:
    """Publish a snapshot again as a version to come would."""
    text = get_manifest(store, digest).annotations[manifest.ANNOTATION]
    altered(store, digest, ref, text.replace('"format":1,', '"format":2,', 1).replace('"kernel":"6.18.1"', f'"kernel":"{kernel}"'))


def packs_of(store: ObjectStore, digest: str) -> list[str]:
    objects = map_of(store, get_manifest(store, digest))
    return [objects.pack(number).digest.hex() for number in range(objects.pack_count)]
