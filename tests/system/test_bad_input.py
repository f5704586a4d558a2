"""What must be refused: with the exit code of its kind, one clear line, nothing published, and no scratch left.

The many cases run the conversion in this process; one of each class goes through the command.
"""

import json
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.convert.convert import ConvertReport, convert
from imagefs.convert.stream import Limits
from imagefs.errors import ImageFSError
from imagefs.store.base import ObjectStore
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from tests.corpus import rawtar as t
from tests.corpus.features import ROOT
from tests.corpus.hostile import BOMB_BYTES, GOOD, HOSTILE, flip, small_archive, small_docker_archive
from tests.corpus.oci import simple
from tests.system.world import World

_LIMITS = Limits(max_layer_bytes=BOMB_BYTES // 3)


class Bench:
    """A store, with one image in it, and a scratch directory, in this process."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "store"
        self.scratch = root / "scratch"
        self.scratch.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(self.scratch))
        self.store: ObjectStore = open_store(f"file://{self.root}", create=True)
        self.convert(f"oci:{simple(root / 'earlier', t.archive(ROOT, t.file(b'kept', b'x' * 1000)))}", "earlier")

    def convert(self, source: str, name: str) -> ConvertReport:
        return convert(source, Ref(name, "latest"), self.store, jobs=2, limits=_LIMITS)

    def published(self) -> list[str]:
        return [info.key for prefix in ("refs/", "manifests/") for info in self.store.list(prefix)]

    def refused(self, source: str) -> ImageFSError:
        """Check that ``source`` is refused and leaves nothing; return the error."""
        before = self.published()
        with pytest.raises(ImageFSError) as caught:
            self.convert(source, "bad")
        self.check_clean(before)
        error = caught.value
        # Pointing at the code would tell the user nothing: the message has to say what is wrong with the image.
        assert error.message
        assert len((error.message + (error.hint or "")).splitlines()) == 1, error.message
        assert len(error.message) < 1000, error.message
        return error

    def check_clean(self, before: list[str]) -> None:
        assert self.published() == before
        assert list(self.scratch.iterdir()) == []
        assert [path for path in (self.root / "tmp").rglob("*") if path.is_file() and path.name != "lock"] == []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.store.close()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_source(name: str, bench: Bench, tmp_path: Path) -> None:
    case = HOSTILE[name]
    source = case.make(tmp_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = bench.refused(source)
    assert error.exit_code in case.exits, f"{type(error).__name__}: {error.message}"
    # Whatever a header or a document promises, nothing is allocated for it beforehand.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 << 10, "kilobytes more than before"


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_cut_at_every_4_kib(kind: str, bench: Bench, tmp_path: Path) -> None:
    """A cut in the zeros that end an archive loses nothing, so it may pass, with the same result; any other must be refused."""
    whole = small_archive(tmp_path) if kind == "oci-archive" else small_docker_archive(tmp_path)
    digest = bench.convert(f"{kind}:{whole}", "whole").manifest
    data = whole.read_bytes()
    needed = len(data.rstrip(b"\0"))
    cut = tmp_path / "cut.tar"
    for place in range(0, len(data), 4096):
        cut.write_bytes(data[:place])
        if place < needed:
            error = bench.refused(f"{kind}:{cut}")
            assert error.exit_code in {3, 6}, (place, error.message)
        else:
            try:
                assert bench.convert(f"{kind}:{cut}", "cut").manifest == digest
            except ImageFSError as error:
                assert error.exit_code == 3, place  # noqa: PT017 # either is right


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_flipped_bits_all_over(kind: str, bench: Bench, tmp_path: Path) -> None:
    """A flipped bit is refused, or it hit what nothing depends on (a time in a header of the outer archive): never another image."""
    whole = small_archive(tmp_path) if kind == "oci-archive" else small_docker_archive(tmp_path)
    good = bench.convert(f"{kind}:{whole}", "whole").manifest
    before = bench.published()
    size = whole.stat().st_size
    bad = tmp_path / "bad.tar"
    for place in range(7, size, max(1, size // 150)):
        bad.write_bytes(whole.read_bytes())
        flip(bad, place)
        try:
            assert bench.convert(f"{kind}:{bad}", "whole").manifest == good, place
        except ImageFSError as error:
            assert error.exit_code in {3, 4, 6, 14}, (place, error.message)  # noqa: PT017 # either is right
        bench.check_clean(before)


@pytest.mark.parametrize("name", ["flipped_layer_150", "diff_id_lies", "gzip_ends_early", "size_too_small"])
def test_lies_about_a_layer_that_the_store_knows(name: str, bench: Bench, tmp_path: Path) -> None:
    """That the same layer was found right once is no reason to believe what is said of it, or its bytes, the next time."""
    bench.convert(f"oci:{simple(tmp_path / 'good', GOOD)}", "good")
    assert bench.refused(HOSTILE[name].make(tmp_path)).exit_code == 3


ONE_OF_EACH = [
    "flipped_layer_150",
    "missing_layer",
    "digest_lies",
    "diff_id_lies",
    "gzip_ends_early",
    "tar_ends_in_data",
    "dotdot",
    "hard_link_dangling",
    "size_of_8_exabytes",
    "path_of_100000_parts",
    "index_of_10_gigabytes",
    "index_of_10000_levels",
    "layer_of_an_unknown_type",
    "layer_encrypted",
    "no_fitting_platform",
    "several_tags",
    "nothing_there",
    "not_an_archive",
]


@pytest.fixture(scope="module")
def used_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with one image."""
    root = tmp_path_factory.mktemp("used")
    world = World(root / "world")
    world.convert(f"oci:{simple(root / 'layout', t.archive(ROOT, t.file(b'kept', b'x' * 1000)))}", "earlier")
    yield world
    assert world.close() == []


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_hostile_source_by_command(name: str, used_world: World, tmp_path: Path) -> None:
    case = HOSTILE[name]
    before = used_world.published()
    done = used_world.attempt("convert", case.make(tmp_path), "bad", "--json", seconds=30)
    assert done.status in case.exits, done.err
    assert done.out == "" or "error" in json.loads(done.out)
    clear_message(done.err)
    assert used_world.published() == before
    assert used_world.leftovers() == []


def test_zstd_bomb_by_command(used_world: World, tmp_path: Path) -> None:
    """With the bounds as they are delivered: half a megabyte that becomes 16 GB ends early."""
    from tests.corpus.oci import Layer, zstd_bomb  # noqa: PLC0415 # beside its only use

    source = simple(tmp_path / "layout", Layer(b"", "+zstd", stored=zstd_bomb(256 << 20) * 64))
    done = used_world.attempt("convert", f"oci:{source}", "bad", seconds=60)
    assert done.status in {3, 14}, done.err
    clear_message(done.err)
    assert used_world.leftovers() == []


def clear_message(text: str) -> None:
    """Check that an error is one line, with at most one more that says what to do."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 2, text
    assert len(lines[0]) < 1000, text
    assert not any("{" in line or "object at 0x" in line for line in lines), text
