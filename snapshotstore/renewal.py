"""What a restored program must not have in common with its clones: random numbers, names, and what it knows of its host.

``os.urandom`` and what is made of it differ anyhow. Everything else that was seeded before the snapshot would be drawn equally by all
clones: each of these is seeded anew, and only if the program has imported it. State that is meant to be equal is left alone: the hash
seed, and everything that the program computed. Of the standard library alone, and of Python 3.8: it runs in the sandbox.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, Callable  # noqa: UP035 # of Python 3.8


def renew() -> list[str]:
    """Do it; return the names of what was renewed. What fails is left as it was, and told on standard error."""
    done = []
    for name, renewed in _RENEWED.items():
        module = sys.modules.get(name)
        if module is None:
            continue
        try:
            renewed(module)
        except Exception as error:  # noqa: BLE001 # another version of a library may lack something
            sys.stderr.write(f"snapshotstore: {name} was not renewed: {error}\n")
        else:
            done.append(name)
    return done


def _seed(bits: int) -> int:
    return int.from_bytes(os.urandom(bits // 8), "big")


def _random(module: Any) -> None:
    module.seed(_seed(256))


def _tempfile(module: Any) -> None:
    # It draws names from a generator of its own, made once.
    module._name_sequence = None  # noqa: SLF001 # there is no other way


def _ssl(module: Any) -> None:
    module.RAND_add(os.urandom(64), 64.0)


def _uuid(module: Any) -> None:
    # Time-based ones have a node and a sequence number beside the time. The C library draws both once and keeps them, as does the module
    # with the node: so the library is not asked again, and the node is a random one, marked as such (RFC 9562, 6.10).
    module._generate_time_safe = None  # noqa: SLF001 # there is no other way
    module._node = _seed(48) | 1 << 40  # noqa: SLF001 # there is no other way
    module._last_timestamp = None  # noqa: SLF001 # there is no other way


def _numpy(module: Any) -> None:
    module.seed(_seed(32))


def _torch(module: Any) -> None:
    module.manual_seed(_seed(63 // 8 * 8))
    with contextlib.suppress(AttributeError):
        # How many devices there are is the new host's to say.
        module.cuda.device_count.cache_clear()
    with contextlib.suppress(AttributeError):
        module.cuda._cached_device_count = None  # noqa: SLF001 # there is no other way


_RENEWED: dict[str, Callable[[Any], None]] = {
    "random": _random,
    "tempfile": _tempfile,
    "ssl": _ssl,
    "uuid": _uuid,
    "numpy.random": _numpy,
    "torch": _torch,
}
