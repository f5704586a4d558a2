"""What a person sees of a store that cannot be used: the command is run, and what it says is held against what it has to say."""

import json
import re
from pathlib import Path

from tests.system.test_bad_input import clear_message
from tests.system.world import Done, World

USAGE, UNSUPPORTED, STORE, FULL, ACCESS, LATE = 2, 4, 7, 8, 12, 13


def says(world: World, status: int, text: str, *arguments: str | Path) -> Done:
    """Run a command that has to fail with ``status``, saying ``text`` (a pattern) and, on a line of its own, what to do."""
    done = world.attempt(*arguments, "--json", seconds=60)
    assert done.status == status, f"{done.status}: {done.err}"
    clear_message(done.err)
    told = json.loads(done.out)["error"]
    assert told["exit_code"] == status
    assert told["hint"], told["message"]
    assert re.search(text, f"{told['message']}\n{told['hint']}", re.DOTALL), told
    assert world.leftovers() == []
    return done


def small_source(folder: Path) -> str:
    """Make an image of two files; return the SOURCE that names it."""
    folder.mkdir()
    (folder / "small").write_text("hello\n")
    (folder / "large").write_bytes(bytes(range(256)) * 4_000)
    return f"dir:{folder}"
