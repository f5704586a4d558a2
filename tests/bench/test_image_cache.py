"""A made image is complete or absent, whatever ended its maker."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.images import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "CACHE", tmp_path)
    monkeypatch.setattr(cache, "_is_root", lambda: True)
    return tmp_path


def write(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "file").write_text(text)

    return make


def test_made_once() -> None:
    first = cache.made("image", {"version": 1}, write("first"))
    assert cache.made("image", {"version": 1}, write("second")) == first
    assert (first / "file").read_text() == "first"


def test_another_recipe_replaces_it() -> None:
    first = cache.made("image", {"version": 1}, write("first"))
    second = cache.made("image", {"version": 2}, write("second"))
    assert (second / "file").read_text() == "second"
    assert not first.exists()


def test_what_a_dead_maker_left_is_not_used(own_cache: Path) -> None:
    left = own_cache / "images" / "image" / "making"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    assert [path.name for path in cache.made("image", 1, write("whole")).iterdir()] == ["file"]
    assert not left.exists()


def test_a_failed_maker_leaves_nothing(own_cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise cache.MakeError("as planned")

    with pytest.raises(cache.MakeError):
        cache.made("image", 1, fail)
    assert [path.name for path in (own_cache / "images" / "image").iterdir()] == ["lock"]
