"""The faults: what goes wrong, for which requests, how often.

Guarantees: which requests a fault hits follows from their order and its seed alone; a fault is counted when it hits, once a request.
``Script`` belongs to all threads; what it decides, it decides under one lock.
"""

import random
import re
import threading
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from tests.faults.heads import Request

Kind = Literal[
    "answer", "wait", "whole", "reset-upload", "lost", "reset", "close", "stall", "cut", "flip", "zero", "duplicate", "content-range"
]

EARLY: Final = frozenset({"answer", "wait", "whole", "reset-upload", "lost"})
"""Kinds that are decided on before the request is passed on; the others when the head of a 2xx answer is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with which requests.

    ``kind`` is one of

    - ``answer``: ``status`` in place of the server's answer, with S3's XML for it, or an HTML page (``html``), and a Retry-After of
      ``retry_after``; the server sees the request only if it is to have acted on it (``acted``)
    - ``wait``: no byte of an answer for ``seconds``, or until the fault is lifted; only then the server sees the request
    - ``lost``: the server acts and answers, and the client sees a reset connection in place of the answer
    - ``reset-upload``: the connection is reset after ``at`` bytes of the request's body
    - ``reset``, ``close``: the answer's connection ends after ``at`` bytes of the body, with RST or FIN; Content-Length is the whole's
    - ``stall``: the body stops after ``at`` bytes for ``seconds``, or until the fault is lifted, and the connection stays open
    - ``cut``: the body is ``at`` bytes long, and Content-Length says so too
    - ``flip``: one bit is wrong in each of ``bits`` bytes: those from ``at`` on, or any
    - ``zero``: ``length`` bytes from ``at`` on are zero; without ``at``, of any sector of 512 bytes
    - ``duplicate``: the ``length`` bytes from ``at`` on come twice, and so many are missing at the end
    - ``content-range``: a 206 names a range ``shift`` bytes further on than that which it carries
    - ``whole``: 200 and the whole object in place of 206. Where the request's signature covers Range, the server can be asked for the
      range only, and zeros stand around it

    ``at`` counts bytes of the body; None is the middle of it, or any place for ``flip`` and ``zero``.

    It applies to requests of ``method`` (None: all), if the regular expression ``key`` is found in path?query, and if more than ``over``
    bytes are concerned: of the answer's body, or, for what is decided before there is an answer, of the request's body or range. Of
    these, to ``count`` (None: all) from the ``nth`` on, each with the probability ``chance``, which ``seed`` decides, as all that is
    random. What needs a 2xx answer, a 206 or more than ``at`` bytes applies only where there is one.
    """

    kind: Kind
    method: str | None = None
    key: str = ""
    over: int | None = None
    nth: int = 1
    count: int | None = None
    chance: float = 1.0
    seed: int = 0
    at: int | None = None
    length: int = 512
    bits: int = 1
    shift: int = 4096
    seconds: float | None = None
    status: int = 503
    retry_after: str | None = None
    html: bool = False
    acted: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"no such fault: {self.kind}")
        if self.nth < 1 or (self.at is not None and self.at < 0) or self.length < 1 or self.bits < 1:
            raise ValueError(f"nth, length and bits begin at 1, at at 0: {self}")
        re.compile(self.key)


@dataclass(slots=True)
class Armed:
    """A fault in force: how many requests it applied to, how many it hit, and whether it was lifted since."""

    ident: int
    fault: Fault
    seen: int = 0
    hits: int = 0
    lifted: bool = False

    def concerns(self, request: Request, size: int | None) -> bool:
        """Whether it applies to a request of ``size`` bytes (None: nobody knows)."""
        fault = self.fault
        if fault.method not in {None, request.method} or not re.search(fault.key, request.target):
            return False
        return fault.over is None or (size is not None and size > fault.over)

    def hit(self) -> bool:
        """Count a request that it applies to, and say whether it is hit."""
        self.seen += 1
        fault = self.fault
        if self.seen < fault.nth or (fault.count is not None and self.hits >= fault.count):
            return False
        if fault.chance < 1.0 and random.Random(f"{fault.seed} {self.seen}").random() >= fault.chance:
            return False
        self.hits += 1
        return True


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that hits this request, as its hit of number ``turn`` (from 1)."""

    armed: Armed
    turn: int

    @property
    def fault(self) -> Fault:
        return self.armed.fault

    @property
    def random(self) -> random.Random:
        """Randomness of this hit's own: the same on each run, another on each hit."""
        return random.Random(f"{self.fault.seed} hit {self.turn}")


@dataclass(slots=True)
class Script:
    """All faults in force."""

    _armed: dict[int, Armed] = field(default_factory=dict)
    _hits: dict[int, int] = field(default_factory=dict)
    _last: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> int:
        """Put a fault into force; return its number."""
        with self._lock:
            self._last += 1
            self._armed[self._last] = Armed(self._last, fault)
            return self._last

    def lift(self, idents: list[int] | None = None) -> None:
        """Take these faults out of force, or all; who waits on one must be woken by the caller."""
        with self._lock:
            for ident in list(self._armed) if idents is None else idents:
                armed = self._armed.pop(ident, None)
                if armed:
                    armed.lifted = True
                    self._hits[ident] = armed.hits

    def hits(self) -> dict[int, int]:
        """Return how many requests each fault hit, lifted ones included, by number."""
        with self._lock:
            return self._hits | {ident: armed.hits for ident, armed in self._armed.items()}

    def early(self, request: Request) -> list[Hit]:
        """Return what hits a request before it is passed on, in the order of the faults."""
        return self._matching(request, request.size, frozenset(), early=True)

    def late(self, request: Request, size: int | None, *, partial: bool) -> list[Hit]:
        """Return what hits a 2xx answer with ``size`` bytes of body (None: unknown); ``partial`` says that it is a 206."""
        without = set() if partial else {"content-range"}
        if size is None:
            without |= {"cut", "flip", "zero", "duplicate"}
        if size == 0:
            without |= {"cut", "flip", "zero", "duplicate", "content-range"}
        return self._matching(request, size, frozenset(without), early=False)

    def _matching(self, request: Request, size: int | None, without: frozenset[str], *, early: bool) -> list[Hit]:
        found = []
        with self._lock:
            for armed in self._armed.values():
                kind, at = armed.fault.kind, armed.fault.at
                if (kind in EARLY) is not early or kind in without or not armed.concerns(request, size):
                    continue
                if kind == "whole" and request.head.get(b"range") is None:
                    continue
                if kind == "reset-upload" and not (request.head.chunked or (request.head.length or 0) > (at or 0)):
                    continue
                if not early and at and size is not None and at >= size:
                    continue
                if armed.hit():
                    found.append(Hit(armed, armed.hits))
        return found
