"""What a daemon remembers of profiles that it has merged."""

from pathlib import Path

from imagefs.cache.profile_files import ProfileFiles
from imagefs.daemon.host_profiles import HostProfiles
from imagefs.digest import digest_of
from imagefs.format.profile import EVERY_START, Access, Key, Profile, Sample
from imagefs.store.opening import open_store
from imagefs.store.profiles import publish

MANIFEST = digest_of(b"manifest").hex()


def profile(number: int, key: Key) -> Profile:
    return Profile(MANIFEST, key, 1, [Access(digest_of(b"%d" % number), 0, 65536, number, EVERY_START)])


def profiles_of(tmp_path: Path) -> tuple[HostProfiles, ProfileFiles]:
    files = ProfileFiles(tmp_path / "cache", lambda error: None)
    return HostProfiles(open_store(f"file://{tmp_path}/store", create=True), files), files


def test_what_was_merged_is_not_merged_again(tmp_path: Path) -> None:
    profiles, files = profiles_of(tmp_path)
    files.keep(MANIFEST, [Sample(profile(1, Key("one")), 1.0), Sample(profile(2, Key("two")), 2.0)])
    first = profiles.kept(MANIFEST)
    assert first is not None
    assert len(first.accesses) == 2
    assert profiles.kept(MANIFEST) is first
    assert profiles.kept(MANIFEST, Key("one")) is not first


def test_what_is_written_counts_at_once(tmp_path: Path) -> None:
    profiles, files = profiles_of(tmp_path)
    assert profiles.kept(MANIFEST) is None
    files.keep(MANIFEST, [Sample(profile(1, Key()), 1.0)])
    first = profiles.kept(MANIFEST)
    files.add(MANIFEST, profile(2, Key()))
    second = profiles.kept(MANIFEST)
    assert first is not None
    assert second is not None
    assert (len(first.accesses), len(second.accesses)) == (1, 2)
    files.forget_added(MANIFEST)
    assert profiles.kept(MANIFEST) == first


def test_few_are_remembered(tmp_path: Path) -> None:
    profiles, files = profiles_of(tmp_path)
    files.keep(MANIFEST, [Sample(profile(number, Key(str(number))), 1.0) for number in range(9)])
    found = [profiles.kept(MANIFEST, Key(str(number))) for number in range(9)]
    again = [profiles.kept(MANIFEST, Key(str(number))) for number in range(9)]
    assert found == again
    assert profiles.kept(MANIFEST, Key("8")) is again[8]
    assert profiles.kept(MANIFEST, Key("0")) is not again[0]


def test_what_the_store_has_counts_also_where_the_disk_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    told: list[Exception] = []
    files = ProfileFiles(tmp_path / "cache", told.append)
    store = open_store(f"file://{tmp_path}/store", create=True)
    profiles = HostProfiles(store, files)
    assert profiles.fetch(MANIFEST, None) is None
    for number, key in enumerate((Key("one"), Key("two"))):
        publish(store, profile(number, key))
    assert profiles.fetch(MANIFEST, Key("two")) == profile(1, Key("two"))
    found = profiles.fetch(MANIFEST, None)
    assert found is not None
    assert len(found.accesses) == 2
    assert {sample.profile.key for sample in profiles.samples(MANIFEST)} == {Key("one"), Key("two")}
    assert profiles.samples("0" * 64) == []
    assert len(told) == 1
    store.close()
