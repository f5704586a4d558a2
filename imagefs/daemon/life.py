"""What supervisor and worker say to each other, over a socket pair that keeps messages apart. When one of them dies, the other notices.

A message is a JSON object with a ``word`` and what belongs to it:

| from the template | |
|---|---|
| ``loaded`` | the code is loaded; with ``forks``, which a worker that was started by itself does not have |
| ``forked`` | the worker that was asked for is there; its ``pid`` |
| ``failed`` | it could not be forked, because of this ``error`` |

| to the template | |
|---|---|
| ``fork`` | make a worker; with two descriptors, its channel, and what its plain words go to |

| from the worker | |
|---|---|
| ``fuse`` | it wants the connection, which is mounted now if it is not |
| ``answered`` | the kernel has its answer to the introduction |
| ``ready`` | it serves |
| ``alive`` | its event loop goes round; once a second |
| ``failed`` | it ends, because of this ``error`` |
| ``reload`` | somebody asks for another worker in its place |
| ``stop`` | nothing is to be served any more; it unmounts and ends |

| from the supervisor | |
|---|---|
| ``go`` | serve; with ``pid``, the supervisor's; ``restarts``, how many workers were before; ``crash``, of what the first of late died |
| ``given`` | the connection: a descriptor, the kernel's ``init``, whether it ``resends`` at all, whether to have it ``resend`` now |
| ``refused`` | there is none, because of this ``error`` |
| ``drain`` | another is ready to take over: answer what was asked, and end |
| ``kept`` | it stays, because of this ``error`` of the one that was to take over |
| ``end`` | unmount everything and end |

After an update the supervisor is older than the worker until it is restarted too: words and fields are added, and none is given another
meaning.

What does not live here: who says what when (``supervisor``, ``lifeline``).
"""

import json
from typing import Any, Final, Literal

Word = Literal[
    "loaded",
    "forked",
    "fork",
    "fuse",
    "answered",
    "ready",
    "alive",
    "failed",
    "reload",
    "stop",
    "go",
    "given",
    "refused",
    "drain",
    "kept",
    "end",
]

MESSAGE_MAX: Final = 64 << 10
"""Bytes of a message, at most. Longer ones are cut off, and cannot be read then."""

ALIVE_SECONDS: Final = 1.0
"""How often a worker says that it is alive."""


def message(word: Word, **fields: object) -> bytes:
    """Encode a message."""
    return json.dumps({"word": word, **fields}).encode()


def parsed(data: bytes) -> dict[str, Any]:
    """Decode a message. ``ValueError`` if it is none."""
    found = json.loads(data)
    if not isinstance(found, dict) or "word" not in found:
        raise ValueError(found)
    return found
