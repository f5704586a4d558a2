"""``docs/reliability.md``, made from the table. ``python -m tests.matrix.page`` writes it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tests.matrix.table import DISK, OPERATIONS, PROCESS, STORE, Column, Outcome

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"

_INTRODUCTION: Final = """\
# What happens when something breaks

A host that serves images depends on a store that is far away, on a disk, and on a process. This page says what a program, and whoever runs
it, sees when one of them fails. It is made from the table that the tests go by (`tests/matrix`): each cell below is a test with real
mounts, a real S3 server, and a proxy in front of it that does what the row says. While 64 readers wait for what is not on the host, what
needs none of it is tried; then all other operations run together.

Four things make the difference.

**Everything is verified.** A frame's bytes are compared with its digest whenever they enter RAM, be it from the store or from the SSD;
trees, object maps and manifests when they are taken into use. So there are right bytes and there are errors, and nothing else. A frame that
is wrong on SSD is dropped there and fetched; one that comes wrong from the store is fetched once more, and then refused for two
seconds. `verify_failures` in `imagefs stats` counts them, and the log names them. If it grows, look for a bad disk, link or proxy.

**Every wait for the store has a deadline**, `IMAGEFS_STORE_DEADLINE`, 30 seconds by default. A read that cannot be answered until then
fails with `EIO`; programs do not hang for ever. Within that time a GET is given up early and sent again: after errors that may pass, after
half answers, after silence, with pauses that grow and never sooner than a `Retry-After` asks. Answers that will not change, such as 403 and
404, are not asked for again.

**A breaker keeps a dead store from costing every reader the whole deadline.** When nothing was answered for a while (a quarter of the
deadline, 5 seconds at most) and several GETs failed, new reads of what is not on the host fail at once. Every few seconds, at most 15, one
read is let through to see whether the store is back. One that was waiting before the breaker opened waits on: a short outage fails nobody.

**What is on the host needs no store.** `ls` and `stat` are answered from the index, warm reads from RAM and SSD, and an image that
was mounted here before is mounted again while the store is away, as what its ref stood for the last time.

When the fault is over, everything works again without a remount, in the same daemon: each row is tested for that too. After a store's
outage that takes up to the breaker's pause.
"""

_LEGEND: Final = """\
## The table

| word | meaning |
|---|---|
| as ever | unaffected: as if nothing were wrong |
| right | the right bytes, or success; it may take longer |
| `EIO`, `ENOTCONN` | the error that a reader gets, by the deadline; a mapped page gives `SIGBUS` instead of `EIO` |
| exit *N* | how the command ends; [errors.md](errors.md) says what each number means |

The table is of FUSE mode, and holds for kernel mode too but where the words below it say otherwise: both are tested.

Cold reads, exec, sequential, random and the 64 readers read what is not on the host. The second mount is of an image that was mounted here
before. The times that are tested come with a deadline of 4 seconds.
"""

_TITLES: Final = {"store": "The store, and the way to it", "disk": "The cache's disk", "process": "The daemon"}


def page() -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION, _LEGEND]
    for group in (STORE, DISK, PROCESS):
        parts.extend(("\n".join(_group(group)), "\n".join(_words(group))))
    return "\n".join(parts) + "\n"


def _group(columns: Iterable[Column]) -> Iterator[str]:
    columns = list(columns)
    yield f"## {_TITLES[columns[0].group]}\n"
    yield "| | " + " | ".join(OPERATIONS.values()) + " |"
    yield "|---" * (1 + len(OPERATIONS)) + "|"
    for column in columns:
        yield f"| **{column.title}** | " + " | ".join(_cell(column.cells[name]) for name in OPERATIONS) + " |"
    yield ""


def _cell(outcome: Outcome) -> str:
    if outcome.kind == "unaffected":
        return "as ever"
    if outcome.kind == "right":
        return "right"
    return outcome.code if outcome.code.startswith("exit") else f"`{outcome.code}`"


def _words(columns: Iterable[Column]) -> Iterator[str]:
    for column in columns:
        yield f"- **{column.title[0].upper()}{column.title[1:]}.** {column.happens} {column.follows}"
        notes: dict[str, list[str]] = {}
        for name, outcome in column.cells.items():
            if outcome.note:
                notes.setdefault(outcome.note, []).append(OPERATIONS[name])
        for note, names in notes.items():
            yield f"  - {', '.join(names)}: {note}"
        if column.kernel_words:
            others = [f"{OPERATIONS[name]}: {_cell(outcome)}" for name, outcome in column.kernel.items()]
            yield f"  - in kernel mode, {column.kernel_words}" + (f" ({', '.join(others)})" if others else "")
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page())
