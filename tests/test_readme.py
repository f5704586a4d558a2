"""The commands that the first pages tell people to type are there."""

import re
import subprocess
from pathlib import Path

import pytest

from imagefs_cli.group import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/README.md", "docs/systemd.md"]


def typed(page: str, program: str) -> set[str]:
    """Give the first words after ``program`` in a page's shell blocks and code spans."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    return set(re.findall(rf"(?m)^{re.escape(program)} ([a-z]+)", "\n".join(blocks)))


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_imagefs(page: str) -> None:
    assert typed(page, "imagefs") <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_dev(page: str) -> None:
    usage = subprocess.run([ROOT / "dev", "help"], capture_output=True, text=True, check=True, timeout=20).stdout
    assert typed(page, "./dev") <= set(re.findall(r"(?m)^  ([a-z]+)", usage))


def test_the_readme_has_commands() -> None:
    assert {"convert", "mount", "umount"} <= typed("README.md", "imagefs")
    assert {"demo", "test"} <= typed("README.md", "./dev")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target
