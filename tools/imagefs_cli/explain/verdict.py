"""One sentence that says what to do next. Pure: rules over what the analysis has found, the first that fits.

Each rule names what is largest on the critical path and what would take it away. A sentence begins with what to do, or with what is the
limit where nothing is left to do; figures in it are of this start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from imagefs.format.start import Start
from imagefs_cli import output
from imagefs_cli.explain.usage import Bytes, Link

_LITTLE: Final = 0.05
"""A share of the start below which waits are not worth a word."""

_LITTLE_US: Final = 30_000
"""Microseconds below which they are not, however short the start is."""

_BUSY: Final = 0.8
"""A share of the time from which on a link is the limit."""

_TWICE: Final = 0.1
"""A share of what was moved from which on it matters that it was moved again."""

_WASTE: Final = 0.7
"""A share of what was fetched below which what was touched is little."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known besides the document. None: not known.

    ``earlier``: how many earlier starts are recorded, so that there should be a profile; ``origin_us``: how long a start took of what
    ``optimize`` made this image from.
    """

    earlier: int = 0
    origin_us: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules look at. ``path`` and ``help_us`` are waits on the critical path, in us, by kind and by what a profile did."""

    start: Start
    length_us: int
    path: Mapping[str, int]
    help_us: Mapping[str, int]
    store_steps: int
    bytes: Bytes
    link: Link
    decode_cpu_us: int
    late_gets: int
    gets_by_kind: Mapping[str, int]
    known: Known = field(default_factory=Known)

    @property
    def waited_us(self) -> int:
        """All waits on the path."""
        return sum(self.path.values())

    @property
    def store_us(self) -> int:
        """Waits for the store on the path."""
        return self.waited_us - self.path["disk"] - self.path["other"]

    @property
    def ref(self) -> str:
        """How the image is named on a command line."""
        return self.start.ref or self.start.manifest[:12]

    @property
    def is_link_full(self) -> bool:
        """Bytes came in nearly all the time."""
        return self.link.until_us > 0 and self.link.busy_us >= _BUSY * self.link.until_us

    def is_much(self, us: int) -> bool:
        """Say whether a time is worth a word."""
        return us >= max(_LITTLE_US, _LITTLE * self.length_us)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``code`` is for programs, and stays the same; ``sentence`` is for people. ``gain`` says what ``optimize`` has gained, or nothing."""

    code: str
    sentence: str
    gain: str = ""


def seconds(us: float) -> str:
    """Say a time to a person: ``4.91 s``, ``25 ms``."""
    if us >= 99_950:
        return f"{us / 1e6:.2f} s"
    return f"{us / 1e3:.0f} ms" if us >= 9_950 else f"{us / 1e3:.1f} ms" if us >= 50 else f"{us:.0f} us"


def verdict(facts: Facts) -> Verdict:
    """Return what to do next."""
    for rule in _RULES:
        if (found := rule(facts)) is not None:
            return Verdict(found.code, found.sentence, _gain(facts))
    return Verdict("program", _program(facts), _gain(facts))


class Found(NamedTuple):
    """A rule's advice."""

    code: str
    sentence: str


def _nothing(facts: Facts) -> Found | None:
    if facts.start.opens or facts.start.reads:
        return None
    return Found("nothing-read", "Start the program, then ask again: nothing has been read from this mount yet.")


def _local(facts: Facts) -> Found | None:
    if facts.is_much(facts.waited_us):
        return None
    return Found("program", _program(facts))


def _program(facts: Facts) -> str:
    waited = seconds(facts.waited_us) if facts.waited_us >= 1000 else "for nothing"
    return (
        f"Nothing is left to gain here: {seconds(facts.length_us - facts.waited_us)} of {seconds(facts.length_us)} are the program's own "
        f"time, and it waited {waited}."
    )


def _retries(facts: Facts) -> Found | None:
    if facts.link.retried < max(3, facts.link.gets // 20) or not facts.is_much(facts.store_us):
        return None
    return Found(
        "store-fails",
        f"Look at the store with `imagefs doctor`: {facts.link.retried} of {facts.link.gets} GETs had to be sent more than once.",
    )


def _small_cache(facts: Facts) -> Found | None:
    if facts.bytes.twice < max(4 << 20, _TWICE * facts.bytes.stored) or not facts.is_much(facts.store_us):
        return None
    return Found(
        "cache-small",
        f"Give the cache more room (`ram_bytes`, `cache_bytes`): {output.size(facts.bytes.twice)} of {output.size(facts.bytes.stored)} "
        f"were fetched a second time.",
    )


def _no_profile(facts: Facts) -> Found | None:
    waits = facts.help_us["no_profile"]
    if facts.start.profile is not None or not facts.is_much(waits):
        return None
    if (earlier := facts.known.earlier) > 0:
        return Found(
            "profile-unused",
            f"Mount it without --no-prefetch: {earlier} earlier {'start is' if earlier == 1 else 'starts are'} recorded, and no profile "
            f"was used; {seconds(waits)} of {seconds(facts.length_us)} were waits that it is for.",
        )
    return Found(
        "start-again",
        f"Start it again: there was no profile yet, and {seconds(waits)} of {seconds(facts.length_us)} were waits for the store, "
        f"{facts.store_steps} one after the other, which a profile of this start takes away.",
    )


def _decode(facts: Facts) -> Found | None:
    coded = facts.path["decode"] + facts.path["verify"]
    if coded < 0.5 * facts.waited_us or not facts.is_much(coded):
        return None
    cpus = facts.start.host.cpus
    return Found(
        "decode-bound",
        f"Give it more CPUs: {seconds(coded)} of {seconds(facts.waited_us)} waited are for decompressing and verifying, which took "
        f"{seconds(facts.decode_cpu_us)} of CPU time" + (f" of {cpus} CPUs." if cpus else "."),
    )


def _bandwidth(facts: Facts) -> Found | None:
    if not facts.is_link_full or not facts.is_much(facts.store_us):
        return None
    moved, rate = output.size(facts.bytes.stored), output.size(facts.link.bytes_per_second or 0)
    used, content = facts.bytes.touched_of_fetched, facts.bytes.content
    if used is not None and content and used < _WASTE * content and facts.start.optimized is None:
        return Found(
            "optimize-bandwidth",
            f"Run `imagefs optimize {facts.ref}`: the link is full ({moved} at {rate}/s), and only {100 * used // content} % of what "
            f"came was touched.",
        )
    return Found(
        "bandwidth",
        f"The link is the limit: {moved} came at {rate}/s in {seconds(facts.link.until_us)}; only more bandwidth, or a copy nearer by "
        f"(`imagefs prefetch {facts.ref}`), makes this start shorter.",
    )


def _late(facts: Facts) -> Found | None:
    late = facts.help_us["late"]
    if not facts.is_much(late) or late < facts.help_us["missed"] + facts.help_us["unknown"]:
        return None
    said = f"{facts.late_gets} of {facts.gets_by_kind.get('profile', 0)} GETs of the profile came late and cost {seconds(late)}"
    if facts.start.optimized is None:
        return Found("optimize", f"Run `imagefs optimize {facts.ref}`: {said}.")
    return Found("wait-prefetch", f"Mount it earlier, or with --wait-prefetch: {said}, although the image is optimized.")


def _other_program(facts: Facts) -> Found | None:
    strange = facts.help_us["missed"] + facts.help_us["unknown"]
    if facts.start.profile is None or not facts.is_much(strange):
        return None
    if facts.help_us["unknown"] >= facts.help_us["missed"]:
        return Found(
            "start-again-other",
            f"Start it again: {seconds(facts.help_us['unknown'])} were waits for files that the profile, of {facts.start.profile.starts} "
            f"starts, does not know; if this is another program of the same image, give it a --profile-label.",
        )
    return Found(
        "prefetch-missed",
        f"Start it again: {seconds(facts.help_us['missed'])} were waits for parts of known files that had not been prefetched, and "
        f"are in the profile from now on.",
    )


def _queue(facts: Facts) -> Found | None:
    queue = facts.path["queue"]
    if queue < 0.4 * facts.waited_us or not facts.is_much(queue):
        return None
    return Found(
        "queue",
        f"Run `imagefs optimize {facts.ref}`: {seconds(queue)} were waits for a turn among {facts.link.gets} GETs, which fewer and larger "
        f"ones make shorter.",
    )


def _disk(facts: Facts) -> Found | None:
    disk = facts.path["disk"]
    if disk < 0.5 * facts.waited_us or not facts.is_much(disk):
        return None
    return Found("disk", f"Put the cache on a faster disk: {seconds(disk)} of {seconds(facts.length_us)} were waits for this host's own.")


def _latency(facts: Facts) -> Found | None:
    if not facts.is_much(facts.store_us):
        return None
    latency = "" if facts.link.latency_us is None else f" of {seconds(facts.link.latency_us)} latency"
    return Found(
        "latency",
        f"Bring the store nearer: {seconds(facts.store_us)} were {facts.store_steps} waits for it one after the other{latency}.",
    )


def _own(facts: Facts) -> Found | None:
    own = facts.path["other"]
    if not facts.is_much(own) or own < 0.5 * facts.waited_us:
        return None
    return Found(
        "daemon",
        f"Give the host more CPUs: {seconds(own)} of {seconds(facts.length_us)} the daemon took to answer what it had at hand.",
    )


_RULES: Final[tuple[Callable[[Facts], Found | None], ...]] = (
    _nothing,
    _local,
    _retries,
    _small_cache,
    _no_profile,
    _decode,
    _disk,
    _own,
    _bandwidth,
    _late,
    _queue,
    _other_program,
    _latency,
)


def _gain(facts: Facts) -> str:
    """Say what ``optimize`` has gained, where the image is an optimized one."""
    optimized = facts.start.optimized
    if optimized is None:
        return ""
    origin = optimized.manifest[:12] or "another image"
    before = facts.known.origin_us
    if not before:
        told = "no start of that is kept on this host to compare with"
    elif before <= facts.length_us:
        told = f"no gain in time: the last start of that took {seconds(before)}"
    else:
        told = f"{seconds(before - facts.length_us)} less than the last start of that, which took {seconds(before)}"
    return f"Optimized from {origin}: {told}.{_expected(facts, optimized.expected_gain)}"


def _expected(facts: Facts, expected: object) -> str:
    """Say what was expected of ``optimize``, and what came of it. What was expected comes from the image, and may be anything."""
    names = ("gets_before", "bytes_before", "gets_after", "bytes_after")
    found = [expected.get(name) for name in names] if isinstance(expected, dict) else []
    figures = [value for value in found if isinstance(value, int) and 0 <= value < 1 << 63]
    if len(figures) < len(names):
        return ""
    gets_before, before, gets_after, after = figures
    return (
        f" Expected were {gets_after:,} GETs and {output.size(after)} instead of {gets_before:,} and {output.size(before)}; "
        f"it took {facts.link.gets:,} and {output.size(facts.bytes.stored)}."
    )
