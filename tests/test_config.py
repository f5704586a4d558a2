"""Which place a setting is taken from, and that one place has one spelling."""

import json
import os
from dataclasses import MISSING, fields
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.config import Config, load_config, parse_size, root_defaults, store_path
from imagefs.errors import UsageError
from imagefs.settings import DEFAULTS, ENVIRONMENT, load_settings
from imagefs.store.s3_url import is_s3_url, parse_s3_url


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('store = "/file"\ncache = "/file"\nruntime = "/file"\nram_bytes = "64MiB"\n')
    env = {"IMAGEFS_CONFIG": str(file), "IMAGEFS_STORE": "/env", "IMAGEFS_CACHE": "/env", "HOME": "/home/x"}
    config = load_config({"store": "/flag", "cache": None}, env)
    assert config == Config("file:///flag", Path("/env"), Path("/file"), ram_bytes=64 << 20)


def test_defaults_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("builtins.open", _missing)
    config = load_config({}, {})
    assert (store_path(config.store), config.cache, config.runtime) == tuple(Path(place) for place in root_defaults().values())


def test_defaults_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("builtins.open", _missing)
    config = load_config({}, {"HOME": "/home/x", "XDG_RUNTIME_DIR": "/run/user/1000"})
    assert config == Config("file:///home/x/.local/share/imagefs/store", Path("/home/x/.cache/imagefs"), Path("/run/user/1000/imagefs"))
    assert load_config({}, {"HOME": "/home/x", "XDG_CACHE_HOME": "/fast"}).cache == Path("/fast/imagefs")


def _missing(*_: object, **__: object) -> None:
    raise FileNotFoundError


@pytest.mark.parametrize(
    "text, url",
    [
        ("/a/b/", "file:///a/b"),
        ("/a/../b", "file:///b"),
        ("file:///a/b", "file:///a/b"),
        ("file:/a/b", "file:///a/b"),
        ("file://localhost/a", "file:///a"),
        ("/with space/100%", "file:///with%20space/100%25"),
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
    ],
)
def test_one_store_has_one_spelling(text: str, url: str) -> None:
    config = load_config({"store": text}, {})
    assert config.store == url
    assert load_config({"store": url}, {}) == config


_WRITTEN = st.text("ab0-._~/%: +@=S3s?#[]\udcff", max_size=12)


@given(_WRITTEN, st.sampled_from(["", "/", "file:", "file://", "file:///", "file://localhost/", "s3://", "s3://abc/", "S3://abc/"]))
def test_what_is_in_its_spelling_already_is_known_as_that(rest: str, begin: str) -> None:
    """There is a short way for the usual spellings; it gives what the long one gives, which standard library and S3 rules go."""
    text = begin + rest
    try:
        found = load_config({"store": text}, {}).store
    except UsageError:
        with pytest.raises((UsageError, ValueError)):
            _the_long_way(text)
    else:
        assert found == _the_long_way(text)


def _the_long_way(text: str) -> str:
    if not text:
        raise UsageError("empty")
    if is_s3_url(text):
        return parse_s3_url(text).url
    path = text
    if text.startswith(("file:", "file//")):
        parts = urlsplit(text)
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/") or parts.query or parts.fragment:
            raise UsageError("no directory")
        path = os.fsdecode(unquote_to_bytes(os.fsencode(parts.path)))
    elif "://" in text:
        return text.rstrip("/")
    return "file://" + quote(os.fsencode(os.path.abspath(os.path.expanduser(path))))  # noqa: PTH100, PTH111 # Path keeps ".."


def test_a_path_with_any_bytes_comes_back_from_its_url() -> None:
    path = os.fsdecode(b"/a b/%41#?;\xff")
    url = load_config({"store": path}, {}).store
    assert os.fsencode(store_path(url) or "") == os.fsencode(path)


def test_a_relative_store_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config({"store": "x"}, {}).store == f"file://{tmp_path}/x"
    assert load_config({"cache": "../y"}, {}).cache == tmp_path.parent / "y"


@pytest.mark.parametrize(
    "flags, env",
    [
        ({"store": ""}, {}),
        ({"store": "file://host/dir"}, {}),
        ({"store": "file:relative"}, {}),
        ({"log_level": "loud"}, {}),
        ({}, {"IMAGEFS_RAM_BYTES": "much"}),
        ({}, {"IMAGEFS_RAM_BYTES": "12"}),
        ({}, {"IMAGEFS_STORE_DEADLINE": "0"}),
        ({}, {"IMAGEFS_STORE_DEADLINE": "nan"}),
        ({}, {"IMAGEFS_STORE_DEADLINE": "soon"}),
        ({"config": "/nonexistent/config.toml"}, {}),
    ],
)
def test_bad_values_name_where_they_came_from(flags: dict[str, str], env: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(flags, env)
    origin = next(iter(env), None) or "--" + next(iter(flags)).replace("_", "-")
    assert origin in caught.value.message or "/nonexistent/config.toml" in caught.value.message


@pytest.mark.parametrize("text", ["sto = 1", "store = ", "\xff", "ram_bytes = true", "store = 3", "[store]\n"])
def test_a_bad_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        load_config({"config": file}, {})
    assert str(file) in caught.value.message


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1", "2K", "3 MiB", "1.5GB", "1t", 7)] == [1, 2048, 3 << 20, 3 << 29, 1 << 40, 7]
    for bad in ("", "-1", "1X", "1.5.5M", True):
        with pytest.raises(ValueError):  # noqa: PT011 # its text is shown to nobody
            parse_size(bad)


def test_an_instance_is_its_store_cache_and_mountpoint() -> None:
    config = Config("file:///s", Path("/c"), Path("/r"))
    names = {
        config.instance(),
        config.instance("/m"),
        config.instance("/n"),
        Config("file:///s2", Path("/c"), Path("/r")).instance(),
        Config("file:///s", Path("/c2"), Path("/r")).instance(),
    }
    assert len(names) == 5
    assert all(len(name) == 16 for name in names)
    assert config.instance("/m") == config.instance(Path("/m"))
    assert config.instance_dir() == Path("/r") / config.instance()


def test_settings_configuration_and_environment_name_the_same() -> None:
    names = {field.name for field in fields(Config)}
    assert set(load_settings({}, {"HOME": "/h"})) == set(ENVIRONMENT) == names
    assert {field.name: field.default for field in fields(Config) if field.default is not MISSING} == DEFAULTS


def test_what_is_told_to_another_process_is_the_same_configuration() -> None:
    config = load_config({"store": "/s", "cache": "/c", "metrics_listen": "127.0.0.1:9464"}, {"IMAGEFS_CACHE_FLOOR": "1GiB", "HOME": "/h"})
    assert Config.of(json.loads(json.dumps(config.told()))) == config


def test_how_often_the_ssd_tier_is_verified() -> None:
    def days(text: str) -> float:
        return load_config({}, {"HOME": "/h", "IMAGEFS_SCRUB_DAYS": text}).scrub_days

    assert (days("0"), days("0.5"), days("30")) == (0, 0.5, 30)
    for wrong in ("-1", "nan", "1e9", "weekly"):
        with pytest.raises(UsageError, match="IMAGEFS_SCRUB_DAYS"):
            days(wrong)
