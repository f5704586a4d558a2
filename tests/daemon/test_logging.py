"""The log: JSON lines, bounded."""

import json
from pathlib import Path

from imagefs.daemon.logging_setup import BoundedFile


def test_the_file_is_bounded_and_begun_again(tmp_path: Path) -> None:
    file = BoundedFile(tmp_path / "log", limit=1000)
    for number in range(100):
        file.write(f"line {number:03} " + "x" * 40 + "\n")
    old, new = (tmp_path / "log.1").read_text(), (tmp_path / "log").read_text()
    assert len(old) <= 1000
    assert len(new) <= 1000
    assert new.endswith("line 099 " + "x" * 40 + "\n")
    assert int(new.split()[1]) == int(old.splitlines()[-1].split()[1]) + 1
    assert json.dumps(new)
