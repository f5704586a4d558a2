"""`imagefs profile`: what is known of starts is shown by path, moved from store to store and image to image, and removed."""

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from imagefs import errors
from imagefs.digest import digest_of
from imagefs.format.profile import EVERY_START, GRAIN, Access, Key, Profile, decode, encode
from imagefs.store.base import ObjectStore, profile_key
from imagefs.store.opening import open_store
from imagefs.store.profiles import fetch, publish
from imagefs_cli.main import main

CONTENT = {"app/main.py": b"print(1)\n" * 20, "app/lib/torch.so": bytes(range(256)) * 1000, "b\udcff/é": b"another " * 40}
TRAIN, NIGHTLY = Key("python train.py"), Key("python train.py", "nightly")


@dataclass
class Place:
    """A store with two images that have some files in common, and one that has none of them."""

    store: ObjectStore
    folder: Path
    capsys: pytest.CaptureFixture[str]
    manifests: dict[str, str]

    def run(self, *arguments: str, status: int = 0) -> Any:
        """Run `imagefs profile …`; return its JSON document."""
        self.capsys.readouterr()
        assert main(["--store", self.store.url, "profile", *arguments, "--json"]) == status
        return json.loads(self.capsys.readouterr().out)

    def say(self, *arguments: str) -> tuple[str, str]:
        """Run it for a person; return what it prints and says."""
        self.capsys.readouterr()
        assert main(["--store", self.store.url, "profile", *arguments]) == 0
        return self.capsys.readouterr()

    def fail(self, kind: type[errors.ImageFSError], *arguments: str) -> str:
        """Run what must fail so; return the message and the hint."""
        error = self.run(*arguments, status=kind.exit_code)["error"]
        assert error["type"] == kind.__name__
        return f"{error['message']} ({error['hint']})"


def write(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Place]:
    url = f"file://{tmp_path}/store"
    newer = dict(list(CONTENT.items())[1:]) | {"app/main.py": b"print(2)\n" * 20}
    manifests = {}
    for ref, content in (("app:1", CONTENT), ("app:2", newer), ("other:1", {"x": b"something else" * 9})):
        assert main(["--store", url, "convert", f"dir:{write(tmp_path / ref, content)}", ref, "--json"]) == 0
        manifests[ref] = json.loads(capsys.readouterr().out)["manifest"]
    store = open_store(url)
    yield Place(store, tmp_path, capsys, manifests)
    store.close()


def started(place: Place, ref: str = "app:1", *, key: Key = TRAIN, late: int = 0) -> Profile:
    names = [digest_of(data) for data in CONTENT.values()]
    rows = [
        Access(names[0], 0, GRAIN, 5 + late, EVERY_START),
        Access(names[1], 0, 2 * GRAIN, 10 + late, EVERY_START),
        Access(names[1], 3 * GRAIN, 4 * GRAIN, 900 + late, EVERY_START),
        Access(names[2], 0, GRAIN, 700 + late, EVERY_START),
    ]
    return Profile(place.manifests[ref], key, 1, rows)


def test_an_image_without_profiles_says_so(place: Place) -> None:
    assert place.run("ls", "app:1")["profiles"] == []
    assert place.say("ls", "app:1")[0].split() == ["ID", "KIND", "STARTS", "SIZE", "AGE", "PROGRAM", "LABEL"]
    assert "profile ls" in place.fail(errors.NotFoundError, "show", "app:1")
    assert place.run("rm", "app:1")["removed"] == []
    place.fail(errors.NotFoundError, "ls", "none:1")
    place.fail(errors.NotFoundError, "export", "app:1", str(place.folder / "f"))


def test_ls_lists_merges_and_what_they_are_made_of(place: Place) -> None:
    names = [publish(place.store, started(place, late=late)) for late in range(3)]
    labelled = publish(place.store, started(place, key=NIGHTLY))
    place.store.put_if_absent(profile_key(place.manifests["app:1"], "f" * 32), b"junk")
    document = place.run("ls", "app:1")
    assert document["manifest"] == place.manifests["app:1"]
    found = {row["id"]: row for row in document["profiles"]}
    assert {*names, labelled, "f" * 32} < set(found)
    assert found["f" * 32]["problem"]
    merges = {row["starts"]: row for row in found.values() if row.get("kind") == "merge"}
    assert merges[3]["inputs"] == sorted(names)
    assert merges[3]["key"] == {"entry": "python train.py", "label": "", "gpu": ""}
    assert merges[1]["key"]["label"] == "nightly"
    said = place.say("ls", "app:1")[0]
    assert "python train.py" in said
    assert "damaged" in said
    assert all(name in said for name in found)


def test_a_long_command_line_is_cut_for_people_alone(place: Place) -> None:
    long = "python " + "x" * 400
    publish(place.store, started(place, key=Key(long)))
    lines = place.say("ls", "app:1")[0].splitlines()
    assert max(map(len, lines)) < 160
    assert any(line.rstrip().endswith("x...") for line in lines)
    assert {row["key"]["entry"] for row in place.run("ls", "app:1")["profiles"]} == {long}


def test_show_tells_paths_in_the_order_of_need(place: Place) -> None:
    publish(place.store, started(place))
    publish(place.store, started(place, key=NIGHTLY, late=100))
    profile = place.run("show", "app:1", "--key", "python train.py")["profile"]
    assert (profile["starts"], profile["objects"], profile["key"]["label"]) == (1, 3, "")
    rows = [(row["path"], row["start"], row["end"], row["at_ms"], row["share"]) for row in profile["accesses"]]
    assert rows == [
        ("/app/main.py", 0, 180, 5, 1.0),
        ("/app/lib/torch.so", 0, 131072, 10, 1.0),
        ("/b\udcff/é", 0, 320, 700, 1.0),
        ("/app/lib/torch.so", 196608, 256000, 900, 1.0),
    ]
    assert profile["bytes"] == 180 + 131072 + 320 + (256000 - 196608)
    assert place.run("show", "app:1", "--label", "nightly")["profile"]["accesses"][0]["at_ms"] == 105
    assert place.run("show", "app:1")["profile"]["starts"] == 2
    text, said = place.say("show", "app:1", "--label", "nightly")
    assert "/app/lib/torch.so" in text
    assert "nightly" in text
    assert "\\udcff" in text
    assert said == ""
    name = place.run("ls", "app:1")["profiles"][-1]["id"]
    assert place.run("show", "app:1", "--id", name)["profile"]["starts"] == 1
    place.fail(errors.NotFoundError, "show", "app:1", "--id", "f" * 32)
    place.fail(errors.NotFoundError, "show", "app:1", "--label", "none")
    place.fail(errors.UsageError, "show", "app:1", "--id", name, "--label", "nightly")


def test_a_person_is_shown_the_first_ones_and_all_if_he_asks(place: Place) -> None:
    rows = [Access(digest_of(CONTENT["app/lib/torch.so"]), 0, GRAIN, 0, EVERY_START)]
    rows += [Access(digest_of(b"%d" % number), 0, GRAIN, 1 + number, EVERY_START) for number in range(99)]
    publish(place.store, Profile(place.manifests["app:1"], TRAIN, 1, rows))
    text, said = place.say("show", "app:1")
    assert "60 more" in said
    assert text.count("not in this image") == 39
    assert place.say("show", "app:1", "--all")[0].count("not in this image") == 99


def test_a_profile_goes_from_store_to_store(place: Place, tmp_path: Path) -> None:
    profile = started(place)
    publish(place.store, profile)
    file = tmp_path / "app.profile"
    document = place.run("export", "app:1", str(file))
    assert (document["accesses"], document["starts"], document["size"]) == (4, 1, file.stat().st_size)
    assert decode(file.read_bytes()) == profile
    place.run("rm", "app:1")
    assert fetch(place.store, place.manifests["app:1"], None) is None
    document = place.run("import", "app:1", str(file))
    assert (document["share"], document["bytes"]) == (1.0, 180 + 131072 + 320 + (256000 - 196608))
    assert fetch(place.store, place.manifests["app:1"], TRAIN) == profile
    assert place.run("ls", "app:1")["profiles"][-1]["id"] == document["id"]
    assert "100%" in place.say("import", "app:1", str(file))[1]


def test_a_profile_of_another_image_says_how_much_of_it_this_one_has(place: Place, tmp_path: Path) -> None:
    """By content: the newer image has two of the three objects, and gets what is known of those. One that has none gets nothing."""
    file = tmp_path / "app.profile"
    beyond = Access(digest_of(CONTENT["app/lib/torch.so"]), 99 * GRAIN, 100 * GRAIN, 0, EVERY_START)
    given = started(place)
    file.write_bytes(encode(replace(given, accesses=[*given.accesses, beyond])))
    document = place.run("import", "app:2", str(file))
    assert (document["share"], document["accesses"], document["from"]) == (0.6, 3, place.manifests["app:1"])
    found = fetch(place.store, place.manifests["app:2"], None)
    assert found is not None
    assert [access.at for access in found.accesses] == [10, 700, 900]
    said = place.say("import", "app:2", str(file))[1]
    assert "60%" in said
    assert place.manifests["app:1"][:12] in said
    assert place.manifests["app:1"][:12] in place.fail(errors.UsageError, "import", "other:1", str(file))
    assert fetch(place.store, place.manifests["other:1"], None) is None
    file.write_bytes(encode(replace(given, accesses=())))
    place.fail(errors.UsageError, "import", "app:1", str(file))


def test_rm_removes_some_or_all(place: Place) -> None:
    names = [publish(place.store, started(place, late=late)) for late in range(3)]
    assert place.run("rm", "app:1", names[0], names[1])["removed"] == names[:2]
    assert place.run("show", "app:1")["profile"]["starts"] == 1
    place.fail(errors.NotFoundError, "rm", "app:1", names[0])
    place.say("rm", "app:1")
    assert place.run("ls", "app:1")["profiles"] == []


def test_merge_makes_one_file_of_many_and_newer_files_count_for_more(place: Place, tmp_path: Path) -> None:
    files = []
    for number in range(30):
        rows = [
            Access(digest_of(b"all"), 0, GRAIN, number, EVERY_START),
            Access(digest_of(b"old" if number < 15 else b"new"), 0, GRAIN, 50, EVERY_START),
        ]
        file = tmp_path / f"{number}.profile"
        file.write_bytes(encode(Profile(place.manifests["app:1"], TRAIN, 1, rows)))
        os.utime(file, (1_700_000_000 + number,) * 2)
        files.append(str(file))
    random.Random(1).shuffle(files)
    out = tmp_path / "merged"
    document = place.run("merge", str(out), *files)
    assert (document["profiles"], document["starts"], document["accesses"]) == (30, 30, 3)
    shares = {access.object: access.share / EVERY_START for access in decode(out.read_bytes()).accesses}
    assert shares[digest_of(b"all")] == 1.0
    assert 0.3 < shares[digest_of(b"old")] < 0.4
    assert 0.6 < shares[digest_of(b"new")] < 0.7
    assert "30 profiles" in place.say("merge", str(out), *files)[1]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda data: data[:-1], errors.IntegrityError),
        (lambda data: data[:100] + b"\xff" + data[101:], errors.IntegrityError),
        (lambda _: b"", errors.IntegrityError),
        (lambda _: b"text\n" * 100, errors.IntegrityError),
        (lambda data: data[:8] + b"\2" + data[9:], errors.UnsupportedError),
        (lambda _: bytes(5_000_000), errors.LimitError),
    ],
)
def test_a_file_that_is_no_profile_is_refused_by_name(
    place: Place, tmp_path: Path, change: Callable[[bytes], bytes], kind: type[errors.ImageFSError]
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(encode(started(place)))
    bad.write_bytes(change(good.read_bytes()))
    assert str(bad) in place.fail(kind, "import", "app:1", str(bad))
    assert str(bad) in place.fail(kind, "merge", str(tmp_path / "out"), str(good), str(bad))
    assert not (tmp_path / "out").exists()
    assert place.run("ls", "app:1")["profiles"] == []


def test_files_that_cannot_be_read_or_written_are_told(place: Place, tmp_path: Path) -> None:
    publish(place.store, started(place))
    place.fail(errors.NotFoundError, "import", "app:1", str(tmp_path / "none"))
    place.fail(errors.AccessError, "import", "app:1", str(tmp_path))
    place.fail(errors.AccessError, "export", "app:1", str(tmp_path / "no" / "folder"))
    place.fail(errors.UsageError, "merge", str(tmp_path / "out"))
    assert {path.name for path in tmp_path.iterdir()} == {"app:1", "app:2", "other:1", "store"}
