"""Profiles on the host: what was kept is there, verified, and bounded; and a disk that fails costs nothing else."""

import math
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from imagefs.cache import profile_files
from imagefs.cache.profile_files import MAX_IMAGES, ProfileFiles
from imagefs.digest import digest_of
from imagefs.errors import UsageError
from imagefs.format.profile import Key, Profile, Sample, encode, merge
from imagefs.store.profiles import MAX_KEYS
from tests.format.profiles import MANIFEST, OTHER, program

TRAIN = replace(program(1, 40, 20), key=Key("python train.py"))
SERVE = replace(program(2, 40, 20), key=Key("python serve.py"))
LABELLED = replace(program(3, 40, 20), key=Key("python train.py", "nightly"))


@pytest.fixture
def told() -> list[Exception]:
    return []


@pytest.fixture
def files(tmp_path: Path, told: list[Exception]) -> ProfileFiles:
    return ProfileFiles(tmp_path, told.append)


def image(number: int) -> str:
    return digest_of(b"image %d" % number).hex()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_kept_is_there_for_another_process(files: ProfileFiles, tmp_path: Path, told: list[Exception]) -> None:
    assert files.load(MANIFEST, None) is None
    files.keep(MANIFEST, [Sample(TRAIN, 1.5), Sample(SERVE, 2.5), Sample(LABELLED, math.inf)])
    again = ProfileFiles(tmp_path, told.append)
    assert again.load(MANIFEST, TRAIN.key) == TRAIN
    assert again.load(MANIFEST, Key(label="nightly")) == LABELLED
    assert again.load(MANIFEST, Key(label="none")) is None
    everything = again.load(MANIFEST, None)
    assert everything is not None
    assert everything.starts == 3
    assert again.load(OTHER, None) is None
    assert again.samples(MANIFEST) == [Sample(LABELLED, math.inf), Sample(SERVE, 2.5), Sample(TRAIN, 1.5)]
    files.keep(MANIFEST, [Sample(SERVE, 3.0)])
    assert again.load(MANIFEST, None) == SERVE
    files.keep(MANIFEST, [])
    assert again.load(MANIFEST, None) is None
    assert not told
    with pytest.raises(UsageError):
        files.load("../x", None)
    with pytest.raises(UsageError):
        files.keep("../x", [])
    with pytest.raises(UsageError):
        files.add(MANIFEST.upper(), TRAIN)


def test_what_is_the_same_is_not_written_again(files: ProfileFiles, tmp_path: Path) -> None:
    files.keep(MANIFEST, [Sample(TRAIN, 1.0), Sample(SERVE, 2.0)])
    path = tmp_path / "profiles" / MANIFEST
    before = path.stat().st_ino
    files.keep(MANIFEST, [Sample(SERVE, 2.0), Sample(TRAIN, 1.0)])
    assert path.stat().st_ino == before


def test_what_could_not_be_published_is_merged_here_and_survives_what_the_store_says(files: ProfileFiles) -> None:
    starts = [program(7, 100, 50, jitter=random.Random(number)) for number in range(3)]
    for profile in starts:
        files.add(MANIFEST, profile)
    files.add(MANIFEST, SERVE)
    own = files.load(MANIFEST, starts[0].key)
    at_once = merge(Sample(profile, float(number)) for number, profile in enumerate(starts))
    assert own is not None
    assert own.starts == 3
    # Merging one after the other rounds more often.
    assert [access[:3] for access in sorted(own.accesses)] == [access[:3] for access in sorted(at_once.accesses)]
    files.keep(MANIFEST, [Sample(replace(TRAIN, key=starts[0].key, starts=64), 1.7e9)])
    both = files.load(MANIFEST, starts[0].key)
    assert both is not None
    assert both.starts == 64
    assert {access.object for access in both.accesses} > {access.object for access in starts[0].accesses}
    files.forget_added(MANIFEST)
    files.forget_added(MANIFEST)
    assert files.load(MANIFEST, SERVE.key) is None
    assert files.load(MANIFEST, starts[0].key) == replace(TRAIN, key=starts[0].key, starts=64)


def test_images_that_were_not_used_for_longest_go(files: ProfileFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "profiles"
    small = [Sample(Profile(MANIFEST, Key(), 1, ()), 1.0)]
    for number in range(MAX_IMAGES):
        files.keep(image(number), small)
        os.utime(folder / image(number), (number, number))
    (folder / "spool").mkdir()
    (folder / "README").touch()
    (folder / f".{image(0)}.0123abcd").touch()
    os.utime(folder / f".{image(0)}.0123abcd", (0, 0))
    assert files.load(image(0), None) is not None
    files.keep(image(1000), small)
    files.add(image(1000), TRAIN)
    assert set(names(folder)) == {image(number) for number in range(MAX_IMAGES) if number != 1} | {
        image(1000),
        f"{image(1000)}.local",
        "spool",
        "README",
    }
    monkeypatch.setattr(profile_files, "MAX_BYTES", 3 * len(encode(TRAIN)))
    files.keep(image(1001), [Sample(TRAIN, 1.0)])
    assert files.load(image(1001), None) == TRAIN
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) <= 3 * len(encode(TRAIN))


def test_of_more_keys_than_an_image_has_the_newest_are_kept(files: ProfileFiles) -> None:
    files.keep(MANIFEST, [Sample(replace(TRAIN, key=Key(str(number))), float(number)) for number in range(MAX_KEYS + 3)])
    assert {sample.recorded for sample in files.samples(MANIFEST)} == set(range(3, MAX_KEYS + 3))


def test_a_file_that_is_damaged_or_cut_anywhere_was_never_there(files: ProfileFiles, tmp_path: Path, told: list[Exception]) -> None:
    tiny = Profile(MANIFEST, Key("x"), 1, list(TRAIN.accesses)[:2])
    files.keep(MANIFEST, [Sample(tiny, 1.0)])
    path = tmp_path / "profiles" / MANIFEST
    good = path.read_bytes()
    wrong = [good[:size] for size in range(len(good))]
    wrong += [good[:at] + bytes([good[at] ^ 0x21]) + good[at + 1 :] for at in range(len(good))]
    wrong += [good + b"\0", b""]
    for data in wrong:
        path.write_bytes(data)
        assert files.load(MANIFEST, None) is None
        assert not path.exists()
    path.write_bytes(good)
    assert files.load(MANIFEST, None) == tiny
    assert not told


@pytest.mark.parametrize(
    "change", [(8, b"\2"), (12, b"\2"), (12, b"\0"), (12, b"\xff\xff\xff\xff"), (24, b"\xff\xff\xff\xff"), (24, b"\0")]
)
def test_a_file_that_was_forged_was_never_there(files: ProfileFiles, tmp_path: Path, change: tuple[int, bytes]) -> None:
    files.keep(MANIFEST, [Sample(TRAIN, 1.0)])
    path = tmp_path / "profiles" / MANIFEST
    data = bytearray(path.read_bytes()[:-32])
    at, new = change
    data[at : at + len(new)] = new
    path.write_bytes(data + digest_of(data))
    assert files.load(MANIFEST, None) is None


def test_a_file_that_is_far_too_large_is_not_read(files: ProfileFiles, tmp_path: Path) -> None:
    files.keep(MANIFEST, [Sample(TRAIN, 1.0)])
    path = tmp_path / "profiles" / MANIFEST
    os.truncate(path, 1 << 40)
    assert files.load(MANIFEST, None) is None


def test_a_disk_that_fails_is_told_once_and_nothing_else(tmp_path: Path, told: list[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").write_bytes(b"in the way")
    files = ProfileFiles(tmp_path, told.append)
    for _ in range(3):
        files.keep(MANIFEST, [Sample(TRAIN, 1.0)])
        files.add(MANIFEST, TRAIN)
        assert files.load(MANIFEST, None) is None
        files.forget_added(MANIFEST)
    assert len(told) == 1
    (tmp_path / "profiles").unlink()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    files.keep(MANIFEST, [Sample(TRAIN, 1.0)])
    assert names(tmp_path / "profiles") == []
