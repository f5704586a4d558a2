"""The table: what has to happen, for each fault and operation. Tests hold the program to it, and ``docs/reliability.md`` is made of it.

Three outcomes. *Unaffected*: as if nothing were wrong, and sooner than a wait for the store could end. *Right*: the right bytes, or a
command's success, within a time. *Error*: this error and no other, within a time. There is no fourth one: wrong bytes, and what does not
end, fail the test of their cell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from imagefs.mount.table import FUSE, KERNEL
from tests.matrix.place import DEADLINE

Kind = Literal["unaffected", "right", "error"]
Group = Literal["store", "disk", "process"]

MODES: Final = (FUSE, KERNEL)

AFTERWARDS: Final = "afterwards"
"""The row of what holds when the fault is over."""

OPERATIONS: Final[Mapping[str, str]] = {
    "first": "first mount",
    "second": "second mount",
    "walk": "ls and stat",
    "cold": "cold read",
    "ram": "read, RAM has it",
    "ssd": "read, SSD has it",
    "exec": "exec and mmap",
    "sequential": "sequential read",
    "random": "random reads",
    "readers": "64 readers at once",
    "convert": "convert",
    "umount": "umount",
}
READS: Final = ("cold", "exec", "sequential", "random", "readers")
"""The operations that need bytes of packs which the host does not have."""

SOON: Final = DEADLINE - 0.5
LATEST: Final = DEADLINE + 1.0
PATIENT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has to happen, ``within`` seconds; ``code`` is an errno's name, or ``exit N``. ``note`` explains it on the page."""

    kind: Kind
    code: str = ""
    within: float = SOON
    note: str = ""

    @property
    def seen(self) -> str:
        """What a run that had this outcome notes."""
        return self.code or "right"


UNAFFECTED: Final = Outcome("unaffected")
RIGHT: Final = Outcome("right", within=PATIENT)
EIO: Final = Outcome("error", "EIO", LATEST)
GONE: Final = Outcome("error", "ENOTCONN", SOON)

_ONE_SILENCE: Final = 15.0
"""Seconds that a command without a deadline may take to notice that an answer has stopped (it waits 10 s), and to end."""


def ends(status: int, within: float = LATEST, note: str = "") -> Outcome:
    """Say that a command ends with a status."""
    return Outcome("error", f"exit {status}", within, note)


@dataclass(frozen=True, slots=True)
class Column:
    """A fault: what it is called, what happens, what follows, and the cells. ``damages``: bytes are wrong, so checks have to fail.

    ``kernel`` has the cells that are others in kernel mode, and ``kernel_words`` what there is to say of that.
    """

    name: str
    group: Group
    title: str
    happens: str
    follows: str
    cells: Mapping[str, Outcome]
    damages: bool = False
    kernel: Mapping[str, Outcome] = field(default_factory=dict)
    kernel_words: str = ""

    def outcome(self, operation: str, mode: str) -> Outcome:
        """Return what has to happen in a mode."""
        return self.kernel.get(operation, self.cells[operation]) if mode == KERNEL else self.cells[operation]


def _cells(reads: Outcome = UNAFFECTED, **others: Outcome) -> dict[str, Outcome]:
    """Return a whole column: the cold reads alike, what is named as it is named, and the rest unaffected."""
    return dict.fromkeys(OPERATIONS, UNAFFECTED) | dict.fromkeys(READS, reads) | others


_OFFLINE: Final = Outcome("right", within=LATEST, note="offline, with what the ref stood for the last time")
_NO_SPACE: Final = ends(8, note="there is no room for its index")

STORE: Final = (
    Column(
        "refused",
        "store",
        "connections are refused",
        "Nobody listens at the store's address: the server is down, or a firewall says so.",
        "Reads of what is not on the host wait for the store to come back, and fail at the deadline. After a moment without any answer the "
        "breaker opens, and further reads fail at once. Images that this host has mounted before are mounted from what it has.",
        _cells(EIO, first=ends(7), second=_OFFLINE, convert=ends(7)),
    ),
    Column(
        "black-hole",
        "store",
        "nothing answers",
        "Connections are accepted or hang, and no byte comes back: a router lost its route, a server its mind.",
        "As when connections are refused, only that each first wait lasts until the deadline.",
        _cells(EIO, first=ends(13), second=_OFFLINE, convert=ends(13, within=_ONE_SILENCE)),
    ),
    Column(
        "reset",
        "store",
        "every connection is lost in the middle of an answer",
        "Each GET of content ends with a reset connection after half of its bytes.",
        "Each is repeated until the deadline. A half answer is never used.",
        _cells(EIO, first=ends(7)),
    ),
    Column(
        "reset-at-times",
        "store",
        "some connections are lost in the middle of an answer",
        "The first eight GETs of packs, and the first of an index, are cut off by a reset.",
        "They are repeated, and no reader notices more than the time that takes.",
        _cells(RIGHT),
    ),
    Column(
        "stall",
        "store",
        "answers stop in the middle",
        "Each GET of content delivers half of its bytes and then nothing more, on a connection that stays open.",
        "An attempt is given up well before the deadline and made again on another connection; at the deadline the read fails.",
        _cells(
            EIO,
            first=ends(13),
            convert=Outcome(
                "right",
                within=_ONE_SILENCE,
                note="without what older images could save it",
            ),
        ),
    ),
    Column(
        "slow-first-byte",
        "store",
        "each answer begins late",
        "The store takes 0.2 s longer for each request.",
        "Everything works and takes longer. What is on the host does not.",
        _cells(RIGHT, first=RIGHT, second=RIGHT, convert=replace(RIGHT, within=30.0)),
    ),
    Column(
        "wrong-bytes",
        "store",
        "every answer has a wrong bit",
        "One bit of each answer's body is wrong, again when it is asked for again.",
        "Everything is verified, so nothing wrong is ever read: after a second try the read fails. `verify_failures` counts.",
        _cells(EIO, first=ends(5)),
        damages=True,
    ),
    Column(
        "wrong-bytes-at-times",
        "store",
        "large answers have a wrong bit",
        "One bit of each answer of more than 300 KiB is wrong; smaller ones, with which a frame is asked for again, are right.",
        "The frame that is wrong is fetched again by itself, the others of the same answer are used. Readers get right bytes.",
        _cells(RIGHT),
        damages=True,
    ),
    Column(
        "cut",
        "store",
        "answers are shorter than asked for",
        "Each GET of content brings half of its bytes, as a well-formed answer that says so.",
        "A short answer is never used; it is asked for again until the deadline. A manifest that is cut does not have its digest.",
        _cells(EIO, first=ends(5)),
    ),
    Column(
        "content-range",
        "store",
        "answers carry another range",
        "Each GET of a part of something answers, by its own words, with bytes 4 KiB further on.",
        "It is refused, and asked for again until the deadline. What a mount needs is asked for whole, but for an index of over 4 MiB.",
        _cells(EIO),
    ),
    Column(
        "403",
        "store",
        "the store denies everything (403)",
        "Credentials were withdrawn, or a policy changed.",
        "Asking again would not help: what needs the store fails at once, and says where the credentials came from. A ref is not mounted "
        "from memory when the store says that this host may not have it; a digest is.",
        _cells(EIO, first=ends(12), second=ends(12), convert=ends(12)),
    ),
    Column(
        "404",
        "store",
        "packs are not there (404)",
        "Refs, manifests and indexes are there and packs are not: somebody deleted them.",
        "Reads of what is not on the host fail at once.",
        _cells(EIO),
    ),
    Column(
        "416",
        "store",
        "ranges are refused (416)",
        "Objects are shorter than they were: the store says that there is no such range.",
        "Each frame is tried by itself, so that what is still there can be read; the rest fails at once.",
        _cells(EIO, first=ends(5)),
    ),
    Column(
        "429",
        "store",
        "the store asks to be left alone (429, Retry-After: 1)",
        "Each request is answered with 429 and a Retry-After of a second.",
        "The store is asked less, and not before the second is over. At the deadline the read fails.",
        _cells(EIO, first=ends(7), second=_OFFLINE, convert=ends(7)),
    ),
    Column(
        "500",
        "store",
        "the store fails (500)",
        "Each request is answered with 500.",
        "As when connections are refused.",
        _cells(EIO, first=ends(7), second=_OFFLINE, convert=ends(7)),
    ),
    Column(
        "503-for-a-while",
        "store",
        "the store is busy for a while (503 SlowDown)",
        "The first eight GETs of packs, and the first of an index, are answered with 503.",
        "They are sent again after pauses that grow, fewer at once. No reader notices more than that time.",
        _cells(RIGHT),
    ),
    Column(
        "slow",
        "store",
        "the link is slow",
        "All connections together get 8 MB/s, with everything wanted at the same time.",
        "Everything works and takes as long as the link needs. What is on the host does not.",
        _cells(RIGHT, first=RIGHT, second=RIGHT, convert=RIGHT),
    ),
)

_HEALS: Final = Outcome("right", within=PATIENT, note="from the store")
_UNSEEN: Final = (
    "the kernel reads what is on SSD without the daemon, and shows it as it is, until the scrubber or `imagefs cache verify` has found it; "
    "then it is fetched from the store. The cells say what happens from then on."
)

DISK: Final = (
    Column(
        "full",
        "disk",
        "the cache's file system is full",
        "Something else has filled the file system of the cache directory to its last block.",
        "What is fetched is served from RAM and not kept: a slower host. For an image that was never here there is no room for its index.",
        _cells(RIGHT, first=_NO_SPACE),
    ),
    Column(
        "flipped",
        "disk",
        "bits flip on the cache's disk",
        "Every file of the SSD tier has a wrong bit each 64 KiB.",
        "What is read from SSD is verified. What is wrong there is dropped, counted, logged, and fetched from the store.",
        _cells(ssd=_HEALS),
        damages=True,
        kernel_words=_UNSEEN,
    ),
    Column(
        "zeroed",
        "disk",
        "sectors of the cache's disk are zero",
        "Every file of the SSD tier has a sector of zeros each 64 KiB: what an unclean stop, or a lying disk, leaves.",
        "As with flipped bits.",
        _cells(ssd=_HEALS),
        damages=True,
        kernel_words=_UNSEEN,
    ),
    Column(
        "truncated",
        "disk",
        "files of the cache are cut off",
        "Every file of the SSD tier has lost its second half.",
        "As with flipped bits.",
        _cells(ssd=_HEALS),
        damages=True,
        kernel_words=_UNSEEN,
    ),
    Column(
        "read-only",
        "disk",
        "the cache's file system has become read-only",
        "The kernel has met an error on the file system of the cache directory, and stopped writing to it.",
        "What is fetched is served from RAM and not kept, and what the SSD has is read as ever. An image that was never here cannot be "
        "mounted. The file system stays so until it is unmounted and repaired, and the daemon goes on meanwhile.",
        _cells(RIGHT, first=ends(8, note="its index cannot be kept")),
    ),
)

_RAM_IS_GONE: Final = Outcome("right", within=PATIENT, note="RAM went with the process")

PROCESS: Final = (
    Column(
        "worker-killed",
        "process",
        "the serving process is killed (kill -9) under load",
        "The process that `imagefs daemon status` calls the serving one dies while 8 readers read, and the operations come right after.",
        "The daemon starts another, which takes over what is mounted. No reader gets an error; each waits until that one serves, less than "
        "a second. Before Linux 6.9 what was being asked for in that moment fails with `ECONNABORTED`.",
        _cells(RIGHT, ram=_RAM_IS_GONE),
    ),
    Column(
        "killed",
        "process",
        "the whole daemon is killed (kill -9) under load",
        "The daemon's first process, which keeps the mounts, dies while 8 readers read, and with it the one that serves.",
        "Readers get an error at once, and none hangs. The next `imagefs mount` takes away what the dead daemon left and starts another.",
        _cells(
            GONE,
            second=RIGHT,
            walk=GONE,
            ram=GONE,
            ssd=GONE,
            first=RIGHT,
            umount=RIGHT,
        ),
        kernel={"walk": UNAFFECTED, "ram": UNAFFECTED, "ssd": UNAFFECTED},
        kernel_words="what is on SSD is read as if nothing had happened; only what is not gives errors.",
    ),
    Column(
        "killed-and-mounted-again",
        "process",
        "the whole daemon was killed under load, and the image is mounted again",
        "The same, and the operations come after a mount by another daemon with the same cache.",
        "What the SSD had is still there and is verified as it is read; what was read in the last moments is fetched again.",
        _cells(RIGHT, ram=_RAM_IS_GONE),
    ),
)

COLUMNS: Final[Mapping[str, Column]] = {column.name: column for column in (*STORE, *DISK, *PROCESS)}
