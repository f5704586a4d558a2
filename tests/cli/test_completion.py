"""What bash, zsh and fish make of a line that stops in the middle, with the script that ``imagefs completion`` prints.

Zsh only completes in its line editor, so it is driven through a terminal.
"""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from imagefs_cli.main import main
from tests.system.world import World, end, require

BINARY: Final = Path(sys.executable).parent / "imagefs"
DEADLINE: Final = 30.0

BASH: Final = """
compopt() { :; }
eval "$(imagefs completion bash)"
COMP_LINE=$1 COMP_POINT=${#1}
_imagefs_completion imagefs
printf '%s\\n' "${COMPREPLY[@]}"
"""

ZSHRC: Final = """
PS1=
unsetopt beep
fpath=("$ZDOTDIR" $fpath)
autoload -Uz compinit
compinit -u -D
shown() { print -r -- "{$BUFFER}"; BUFFER= }
zle -N shown
bindkey '^Y' shown
zle-line-init() { print '{}'; zle -D zle-line-init }
zle -N zle-line-init
"""
"""Control-Y shows the line that there is now, in braces, and empties it; ``{}`` is shown when the first line can be typed."""


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell: the command, and a store with two refs."""
    world = World(tmp_path_factory.mktemp("refs") / "world")
    source = world.root / "source"
    source.mkdir()
    (source / "file").write_text("content")
    world.convert(f"dir:{source}", "some/image:one")
    world.run("tag", "some/image:one", "some/image:two")
    yield world.env | {"PATH": f"{BINARY.parent}:{os.environ['PATH']}"}
    assert world.close() == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    require(shell)
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert "_IMAGEFS_COMPLETE" in script.read_text()
    subprocess.run([shell, "-n", script], timeout=DEADLINE, check=True)


@pytest.mark.parametrize(
    "line, expected",
    [
        ("imagefs conv", {"convert"}),
        ("imagefs daemon st", {"status", "stop"}),
        ("imagefs inspect so", {"some/image:one", "some/image:two"}),
        ("imagefs inspect some/image:t", {"two"}),  # readline replaces what follows the colon
        ("imagefs convert oci", {"oci-archive:", "oci:"}),
        ("imagefs convert dir:/us", {"/usr/"}),
        ("imagefs --log-level w", {"warning"}),
        ("imagefs mount --mode ", {"auto", "kernel", "fuse"}),
        ("imagefs --store /nonexistent inspect ", {""}),
    ],
)
def test_bash_completes(env: dict[str, str], line: str, expected: set[str]) -> None:
    require("bash")
    done = subprocess.run(["bash", "-c", BASH, "bash", line], env=env, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert set(done.stdout.removesuffix("\n").split("\n")) == expected
    assert done.stderr == ""


def test_fish_completes(env: dict[str, str]) -> None:
    require("fish")
    for line, expected in (("imagefs conv", "convert"), ("imagefs inspect so", "some/image:two")):
        script = f"imagefs completion fish | source; complete -C '{line}'"
        done = subprocess.run(["fish", "-N", "-c", script], env=env, capture_output=True, text=True, timeout=DEADLINE, check=True)
        assert expected in done.stdout


class Zsh:
    """An interactive zsh in a terminal of its own, which has the completion script where the documentation says to put it."""

    def __init__(self, env: dict[str, str], folder: Path, settings: str = "") -> None:
        """Start it, ``settings`` among its own, and wait until a line can be typed."""
        with (folder / "_imagefs").open("wb") as script:
            subprocess.run([BINARY, "completion", "zsh"], env=env, stdout=script, timeout=DEADLINE, check=True)
        (folder / ".zshrc").write_text(ZSHRC + settings)
        self._terminal, inside = pty.openpty()
        try:
            self.process = subprocess.Popen(
                # setsid makes the terminal the shell's own; -d: this machine's settings are left out.
                ["setsid", "--ctty", "zsh", "-d", "-i"],
                env=env | {"ZDOTDIR": str(folder), "TERM": "xterm"},
                stdin=inside,
                stdout=inside,
                stderr=inside,
                text=True,
            )
        finally:
            os.close(inside)
        self._seen = ""
        self._next_line()

    def close(self) -> None:
        """End it."""
        end(self.process)
        os.close(self._terminal)

    def complete(self, line: str) -> tuple[str, str]:
        """Type ``line`` and a tabulator; return what is then on the line, and what was on the screen before."""
        os.write(self._terminal, f"{line}\t\x19".encode())
        return self._next_line()

    def _next_line(self) -> tuple[str, str]:
        deadline = time.monotonic() + DEADLINE
        while (match := re.search(r"\{([^{}]*)\}", self._seen)) is None:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                pytest.fail(f"zsh showed only {self._seen!r}")
            self._seen += os.read(self._terminal, 4096).decode(errors="replace")
        before, self._seen = self._seen[: match.start()], self._seen[match.end() :]
        return match[1], before


def test_zsh_completes(env: dict[str, str], tmp_path: Path) -> None:
    require("zsh")
    with contextlib.closing(Zsh(env, tmp_path)) as zsh:
        for line, expected in (
            ("mo", "mount "),
            ("mou", "mount "),  # the second time too: the first one loads the script
            ("inspect some/image:t", "inspect some/image:two "),
            ("mount --mode k", "mount --mode kernel "),
            ("mount some/image:two /us", "mount some/image:two /usr/"),
            ("convert oci-a", "convert oci-archive:"),
            ("convert dir:/us", "convert dir:/usr/"),
            ("inspect other/im", "inspect other/im"),
        ):
            assert zsh.complete(f"imagefs {line}")[0] == f"imagefs {expected}"
        line, screen = zsh.complete("imagefs inspect so\t")
        assert line == "imagefs inspect some/image:"
        assert re.search(r"some/image:one\s+some/image:two", screen), screen


def test_zsh_completes_with_a_script_that_is_evaluated(env: dict[str, str], tmp_path: Path) -> None:
    require("zsh")
    with contextlib.closing(Zsh(env, tmp_path, 'rm "$ZDOTDIR/_imagefs"\neval "$(imagefs completion zsh)"\n')) as zsh:
        assert zsh.complete("imagefs mo")[0] == "imagefs mount "
