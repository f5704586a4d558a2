"""Which mirror and suite the image makers find in a machine's apt sources, in both syntaxes."""

import platform
from pathlib import Path

import pytest

from bench.images.apt import Release, this_release
from bench.images.cache import MakeError


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"VERSION_CODENAME": "trixie"})
    (tmp_path / "apt" / "sources.list.d").mkdir(parents=True)
    return tmp_path


def test_one_line_sources(etc: Path) -> None:
    (etc / "apt" / "sources.list").write_text(
        "# deb http://commented.test/debian trixie main\n"
        "deb-src http://source.test/debian trixie main\n"
        "deb http://security.test/debian trixie-security main\n"
        "deb http://other.test/debian trixie contrib  # main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://good.test/debian trixie main contrib\n"
    )
    assert this_release(etc) == Release("http://good.test/debian", "trixie")


def test_deb822_sources(etc: Path) -> None:
    (etc / "apt" / "sources.list.d" / "debian.sources").write_text(
        "Types: deb\nEnabled: no\nURIs: http://off.test/debian\nSuites: trixie\nComponents: main\n"
        "\n"
        "Types: deb\n# a comment\nURIs: mirror+file:/list\n http://good.test/debian\n"
        "Suites: trixie trixie-updates\nComponents:\n main\n contrib\n"
    )
    assert this_release(etc) == Release("http://good.test/debian", "trixie")


def test_nothing_fits(etc: Path) -> None:
    (etc / "apt" / "sources.list").write_text("deb http://old.test/debian bookworm main\n")
    with pytest.raises(MakeError, match="trixie main"):
        this_release(etc)
