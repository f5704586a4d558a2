"""One browser for all tests of the page, and a tab that has opened the page of a document."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagefs_cli.explain_page import page
from tests.explain.browser import Browser, Page
from tests.system.world import require


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    require("chromium", "the page of imagefs explain is tested in it")
    program = shutil.which("chromium")
    assert program
    found = Browser(program, tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


Opened = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opened]:
    """Opens the page of one document, or of two; ``scheme``, ``width`` and ``height`` as for :class:`Page`."""
    tabs: list[Page] = []

    def open_page(*documents: dict[str, Any], **how: Any) -> Page:
        file = tmp_path / f"{len(tabs)}.html"
        file.write_text(page(*documents), encoding="utf-8")
        tabs.append(Page(browser, **how))
        tabs[-1].open(file)
        return tabs[-1]

    yield open_page
    problems = [problem for tab in tabs for problem in tab.problems]
    for tab in tabs:
        tab.close()
    assert problems == []
