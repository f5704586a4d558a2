"""What must be refused: with the exit code of its kind, one clear line, nothing published, and no scratch left.

The many cases run the conversion in this process; one of each class goes through the command.
"""

import hashlib
import json
import re
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
from tests.corpus.features import ROOT, noise
from tests.corpus.hostile import BOMB_BYTES, GOOD, HOSTILE, flip
from tests.corpus.oci import Layer, docker_archive, pack_directory, simple, zstd_bomb
from tests.system.world import World

_LIMITS = Limits(max_layer_bytes=BOMB_BYTES // 3)

_DIGEST = "sha256:[0-9a-f]{64}"
_AGAIN = r"make or fetch"
SAYS = {
    **{f"flipped_{part}_{place}": rf"^{_DIGEST} is damaged.*\n{_AGAIN}" for part in ("manifest", "config") for place in (0, 150, -1)},
    "flipped_layer_150": rf"layer {_DIGEST} is damaged",
    "flipped_layer_-1": rf"layer {_DIGEST} is damaged",
    "missing_manifest": rf"has no blobs/sha256/[0-9a-f]{{64}}\n.*incomplete: {_AGAIN}",
    "missing_layer": rf"has no layer {_DIGEST}\n.*incomplete: {_AGAIN}",
    "empty_layer": rf"layer {_DIGEST} has 0 bytes, not the \d+ that the image says",
    "digest_lies": rf"layer {_DIGEST} is damaged: its bytes do not have that digest\n{_AGAIN}",
    "diff_id_lies": rf"layer {_DIGEST} does not have the diff-id {_DIGEST}",
    "diff_id_lies_below": rf"layer {_DIGEST} does not have the diff-id {_DIGEST}",
    "size_too_large": rf"layer {_DIGEST} has \d+ bytes, not the 1000000000 that the image says",
    "gzip_ends_early": rf"layer {_DIGEST} ends early",
    "tar_ends_in_data": rf"ends inside a file's data \(after 'b', near byte \d+ of layer 1 of 1, {_DIGEST}\)",
    "gzip_bomb": rf"layer {_DIGEST} has more than \d+ bytes uncompressed",
    "zstd_bomb": rf"layer {_DIGEST} has more than \d+ bytes uncompressed",
    "no_fitting_platform": r"nothing for linux/\w+\nit has plan9/mips: choose with --platform",
    "several_tags": r"holds several images and none was named\nadd one of one, two after a colon",
    "docker_archive_of_several": r"holds several images and none was named\nadd one of one:latest, two:latest after a colon",
    "docker_archive_without_that_name": r"has no image 'three'\nit has one:latest, two:latest",
    "no_such_tag": r"has no image 'nope'\nit has latest",
    "dotdot": r"'\.\./x' has a '\.\.' part.*\nan image must not name anything outside its root",
    "dotdot_hard_link": r"'\.\./\.\./\.\./etc/passwd' has a '\.\.' part.*\nan image must not name anything outside its root",
    "symlink_loop_on_the_way": r"'a' leads through .*a loop of them",
    "hard_link_dangling": rf"the hard link 'a' -> 'nowhere' names nothing \(in layer 1 of 1, {_DIGEST}\)\n.*must come before it",
    "hard_link_circular": rf"the hard link 'a' -> 'b' names nothing \(in layer 1 of 1, {_DIGEST}\)\n.*must come before it",
    "layer_of_an_unknown_type": rf"layer {_DIGEST} has the media type 'application/x-nobody', which this version does not read",
    "manifest_of_an_unknown_type": rf"{_DIGEST} has the media type 'application/x-nobody'",
    "layer_encrypted": rf"layer {_DIGEST} is encrypted\ndecrypt the image first: `skopeo copy --decryption-key`",
    "size_of_8_exabytes": r"ends inside a file's data \(after 'a'",
    "size_beyond_64_bits": r"'a' has a size that is not between 0 and 2\*\*63-1",
    "path_of_100000_parts": r"longer than 4096 bytes",
    "path_of_100000_parts_gnu": r"longer than 4096 bytes",
    "uid_beyond_32_bits": r"'a' has an owner that is not between 0 and 2\*\*32-2: 4294967296:0",
    "pax_uid_beyond_32_bits": r"'a' has an owner that is not between 0 and 2\*\*32-2: 4294967296:0",
    "index_of_10_gigabytes": r"^index.json has 10000000000 bytes: .* at most \d+",
    "manifest_of_10_gigabytes": r"has 10000000000 bytes: .* at most \d+",
    "config_of_10_gigabytes": r"has 10000000000 bytes: .* at most \d+",
    "index_of_10000_levels": r"index.json of more than 60 levels",
    "manifest_of_10000_levels": rf"manifest {_DIGEST} .*more than 60 levels",
    "config_of_10000_levels": r"the image's config .*more than 60 levels",
    "nothing_there": r"there is no \S+/nowhere\nSOURCE is oci-archive:FILE",
}
"""What is said of what the user may meet, and below it what can be done: patterns, of the message, a line end and the hint."""


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
    assert re.search(SAYS.get(name, ""), f"{error.message}\n{error.hint or ''}"), f"{error.message}\n{error.hint}"
    # Whatever a header or a document promises, nothing is allocated for it beforehand.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 << 10, "kilobytes more than before"


def test_what_is_said_is_said_of_what_there_is() -> None:
    assert set(SAYS) <= set(HOSTILE)


def _tar(*members: bytes) -> bytes:
    return t.archive(ROOT, *members)


@pytest.mark.parametrize("kind", ["oci", "docker-archive"])
@pytest.mark.parametrize(
    "bad, says",
    [
        (_tar(t.file(b"b", noise(30_000)))[:2048], r"^the layer ends inside a file's data \(after 'b', near byte 2048 of {}\)$"),
        (_tar(t.file(b"../x")), r"^'\.\./x' has a '\.\.' part .*near byte \d+ of {}\)$"),
        (_tar(t.hardlink(b"h", b"nowhere")), r"^the hard link 'h' -> 'nowhere' names nothing \(in {}\)$"),
        (_tar(t.file(b"a/x")), r"^'a' is not a directory, and a layer has something below it \(in {}\)$"),
    ],
    ids=["ends", "dotdot", "dangling", "below-a-file"],
)
def test_what_is_wrong_inside_a_layer_says_in_which(kind: str, bad: bytes, says: str, bench: Bench, tmp_path: Path) -> None:
    layers = [_tar(t.file(b"a", b"1")), bad, _tar(t.file(b"c", b"1"))]
    if kind == "oci":
        path = simple(tmp_path / "layout", *(Layer(layer, "") for layer in layers))
    else:
        path = docker_archive(tmp_path / "docker.tar", layers)
    error = bench.refused(f"{kind}:{path}")
    assert re.search(says.format(f"layer 2 of 3, sha256:{hashlib.sha256(bad).hexdigest()}"), error.message), error.message


def small_archive(path: Path) -> Path:
    """Write a good OCI archive of some tens of kilobytes, to be spoiled."""
    lower = _tar(t.file(b"a", noise(30_000)), t.file(b"b", b"1"))
    made = simple(path / "layout", lower, _tar(t.whiteout(b"b"), t.file(b"c", noise(9_000, b"c"))))
    return pack_directory(made, path / "image.tar")


def small_docker_archive(path: Path) -> Path:
    """Write a good Docker archive of some tens of kilobytes, to be spoiled."""
    return docker_archive(path / "docker.tar", [_tar(t.file(b"a", noise(30_000)), t.file(b"b", b"1")), _tar(t.whiteout(b"b"))])


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
    """That the same layer was found right once is no reason to believe what is said of it the next time."""
    bench.convert(f"oci:{simple(tmp_path / 'good', GOOD)}", "good")
    assert bench.refused(HOSTILE[name].make(tmp_path)).exit_code == 3


ONE_OF_EACH = [
    "flipped_manifest_150",
    "flipped_config_150",
    "flipped_layer_150",
    "missing_layer",
    "docker_archive_of_several",
    "digest_lies",
    "diff_id_lies",
    "gzip_ends_early",
    "tar_ends_in_data",
    "dotdot",
    "hard_link_dangling",
    "hard_link_circular",
    "symlink_loop_on_the_way",
    "uid_beyond_32_bits",
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
    told = json.loads(done.out)["error"]
    assert told["exit_code"] == done.status
    assert re.search(SAYS.get(name, ""), f"{told['message']}\n{told['hint'] or ''}"), told
    clear_message(done.err)
    assert used_world.published() == before
    assert used_world.leftovers() == []


def test_zstd_bomb_by_command(used_world: World, tmp_path: Path) -> None:
    """With the bounds as they are delivered: half a megabyte that becomes 16 GB ends early."""
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
