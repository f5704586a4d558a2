"""``./dev setup``: it says what it installs, installs what is missing and no more, and does nothing the second time.

A copy of it is run in a checkout of its own, on a machine where what would change anything (apt, pip) only writes down that it was called.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.checkout import ROOT, setup
from tests.system.world import missing

_CALLED: Final = 'echo "${0##*/} $*" >>"$MACHINE/calls"\n'
_MACHINE: Final[Mapping[str, str]] = {
    "sudo": 'exec "$@"\n',
    # The packages are asked for after the format.
    "dpkg-query": 'shift 3; for name in "$@"; do if grep -qxF "$name" "$MACHINE/installed"; then echo "ii  $name"; fi; done\n',
    "apt-get": _CALLED
    + 'if [ -e "$MACHINE/offline" ]; then echo "E: no network" >&2; exit 100; fi\n'
    + 'for word in "$@"; do case $word in -* | install | update) ;; *) echo "$word" >>"$MACHINE/installed" ;; esac; done\n',
    # The newest that is looked for. It is asked whether it will do by a program on its standard input.
    "python3.13": 'case $1 in\n  -) cat >/dev/null ;;\n  --version) echo Python 3.13.1 ;;\n  -m) cp -r "$MACHINE/venv" "$3" ;;\nesac\n',
    "runsc": "echo ' -direct'\n",
    "criu": "echo 'Version: 99.0'\n",
}
_VENV: Final[Mapping[str, str]] = {
    "python": f'if [ "$1" = -m ]; then\n{_CALLED}fi\n',  # otherwise it is asked where it is, which is right
    "uv": _CALLED,
}


@dataclass(frozen=True)
class Machine:
    """A checkout, and a machine that ``./dev`` takes for its own."""

    checkout: Path
    place: Path

    def setup(self) -> tuple[int, str, list[str]]:
        """Run it; return its exit status, what it said, and what it called to change the machine."""
        calls = self.place / "calls"
        calls.write_text("")
        env = {"PATH": f"{self.place / 'bin'}:{os.environ['PATH']}", "MACHINE": str(self.place)}
        done = subprocess.run([self.checkout / "dev", "setup"], env=env, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    def remove(self, *packages: str) -> None:
        """Have those packages no more."""
        installed = self.place / "installed"
        installed.write_text("".join(f"{name}\n" for name in installed.read_text().split() if name not in packages))


def _programs(folder: Path, programs: Mapping[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}")
        (folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that has all packages, and nothing in the checkout."""
    made = Machine(tmp_path / "checkout", tmp_path / "machine")
    made.checkout.mkdir()
    for name in ("dev", "pyproject.toml", "requirements-dev.lock"):
        shutil.copy2(ROOT / name, made.checkout)
    _programs(made.place / "bin", _MACHINE)
    _programs(made.place / "venv/bin", _VENV)
    (made.place / "venv/bin/pip").write_text(f"#!{made.checkout}/.venv/bin/python\n")
    listed = (ROOT / "dev").read_text().partition("readonly PACKAGES=(\n")[2].partition("\n)")[0].splitlines()
    (made.place / "installed").write_text("".join(f"{line.split()[0]}\n" for line in listed))
    return made


def _state(*paths: Path) -> dict[str, tuple[int, int, int]]:
    """Return what a change of any of them would change."""
    found = {str(path): path.lstat() for path in paths}
    return {name: (status.st_ino, status.st_mtime_ns, status.st_ctime_ns) for name, status in found.items()}


def test_setup_says_what_it_installs_and_does_nothing_the_second_time(machine: Machine) -> None:
    machine.remove("zsh", "fio")
    status, said, calls = machine.setup()
    assert status == 0, said
    assert said.splitlines() == [
        "dev: installing Debian packages: fio zsh",
        f"dev: making .venv with Python 3.13.1 ({machine.place}/bin/python3.13)",
        "dev: installing the locked Python packages in .venv",
    ]
    assert calls[:2] == ["apt-get -qq update", "apt-get -qq -y --no-install-recommends install fio zsh"]
    assert calls[2].startswith("python -m pip install ")
    assert calls[2].endswith(" --require-hashes -r requirements-dev.lock")
    assert calls[3].startswith("uv pip install --quiet --offline ")
    assert len(calls) == 4
    everything = [machine.checkout, *machine.checkout.rglob("*")]
    before = _state(*everything)
    assert machine.setup() == (0, "", [])
    assert _state(*everything) == before


def test_setup_is_done_anew_where_what_is_asked_for_changed(machine: Machine) -> None:
    assert machine.setup()[0] == 0
    (machine.checkout / "requirements-dev.lock").write_text("other==1\n")
    status, said, calls = machine.setup()
    assert (status, said) == (0, "dev: installing the locked Python packages in .venv\n")
    assert not any(call.startswith("apt-get") for call in calls)
    assert machine.setup() == (0, "", [])


def test_a_setup_that_failed_is_tried_again(machine: Machine) -> None:
    machine.remove("zsh")
    (machine.place / "offline").touch()
    status, said, _ = machine.setup()
    assert status != 0
    assert said == "dev: installing Debian packages: zsh\nE: no network\n"
    (machine.place / "offline").unlink()
    status, said, _ = machine.setup()
    assert status == 0, said
    assert said.startswith("dev: installing Debian packages: zsh\n")
    assert machine.setup() == (0, "", [])


def test_an_engine_that_went_is_got_again(machine: Machine) -> None:
    assert machine.setup()[0] == 0
    (machine.checkout / ".cache/engines/bin/runsc").unlink()
    assert machine.setup()[0] == 0
    assert (machine.checkout / ".cache/engines/bin/runsc").resolve() == machine.place / "bin/runsc"


def test_this_checkout_is_set_up(tmp_path: Path) -> None:
    """As it has to be for its tests."""
    if not (ROOT / ".venv/.setup-stamp").exists():
        missing("this environment was not made by ./dev setup")
    made = [ROOT / name for name in (".venv/.setup-stamp", ".venv/bin", ".cache/engines/bin")]
    before = _state(*made)
    assert setup(tmp_path) == (0, "")
    assert _state(*made) == before
