"""What a keeper is told, in one message, once it has begun (``waiting`` has the other side): a request, and descriptors.

A keeper begins with this, so nothing is imported here that takes long to load.
"""

import os
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC
from _socket import socket as Socket  # noqa: N812 - a class
from array import array
from typing import Final

DESCRIPTORS_MAX: Final = 4


def told(descriptor: int) -> tuple[bytes, list[int]] | None:
    """Wait until the socket has a message; return the request and the descriptors, which no program inherits. None if none will come."""
    talk = Socket(fileno=descriptor)
    data, rights, _, _ = talk.recvmsg(1, CMSG_SPACE((1 + DESCRIPTORS_MAX) * 4), MSG_CMSG_CLOEXEC)
    talk.close()
    if not data:
        return None
    found = array("i")
    for _, _, numbers in rights:
        found.frombytes(numbers)
    file, *descriptors = found
    with os.fdopen(file, "rb") as reading:
        reading.seek(0)  # It was written by the same open file, which is at its end.
        return reading.read(), descriptors
