"""Asking a daemon something over its control socket. Plain blocking functions, each with a deadline.

The process that answers may be replaced at any time: who connects meanwhile waits for the next one, and who waited for an answer gets a
``BrokenError``.

Each command comes here, a mount's too: so nothing is imported that takes longer to load than asking takes (``imagefs.settings`` names it),
and the sockets are the C ones, without ``socket`` and its enumerations.
"""

import os
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812 - a class

from imagefs.daemon.plain_json import decoded, encoded
from imagefs.daemon.wire import rebuilt
from imagefs.errors import AccessError, DaemonError, DeadlineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

SOCKET_NAME: "Final" = "control.sock"
QUICK: "Final" = 10.0
PAUSE: "Final" = 0.05
_ANSWER_MAX: "Final" = 64 << 20


class BrokenError(DaemonError):
    """The connection broke before there was an answer: whether what was asked for has happened is not known."""


def ask_again(directory: "str | os.PathLike[str]", request: dict[str, object], timeout: float) -> "dict[str, Any]":
    """Ask what may be asked twice: again, as long as there is time, where the worker that was asked has gone."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return ask(directory, request, deadline - time.monotonic())
        except BrokenError as error:
            if time.monotonic() + PAUSE >= deadline:
                raise DaemonError(error.message, hint=error.hint) from error
            time.sleep(PAUSE)


def answers(directory: "str | os.PathLike[str]") -> bool:
    """Say whether there is a daemon."""
    try:
        ask_again(directory, {"op": "ping"}, QUICK)
    except DaemonError:
        return False
    return True


def ask(directory: "str | os.PathLike[str]", request: dict[str, object], timeout: float) -> "dict[str, Any]":
    """Ask once; return the result, or raise the error that the daemon met.

    ``BrokenError`` if it may have done what was asked for and did not say so; ``DaemonError`` if none answers.
    """
    deadline = time.monotonic() + timeout
    connection = connect(directory)
    try:
        connection.settimeout(timeout)
        connection.sendall(encoded(request) + b"\n")
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < _ANSWER_MAX:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = connection.recv(65536)
            if not chunk:
                raise BrokenError("the daemon closed the connection without an answer", hint=f"its log is {directory}/daemon.log")
            answer += chunk
    except TimeoutError:
        raise DeadlineError(f"the daemon did not answer within {timeout:g} s", hint=f"its log is {directory}/daemon.log") from None
    except OSError as error:
        raise BrokenError(f"the connection to the daemon broke: {error.strerror}", hint=f"its log is {directory}/daemon.log") from error
    finally:
        connection.close()
    return result_of(answer)


def connect(directory: "str | os.PathLike[str]") -> Socket:
    """Connect to the daemon of the instance that has this directory."""
    connection = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        # A socket's path is limited to 107 bytes; through the directory's descriptor it always fits.
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _connect_patiently(connection, f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
        finally:
            os.close(descriptor)
    except BaseException as error:
        connection.close()
        if isinstance(error, PermissionError):
            raise AccessError(f"this user may not talk to the daemon at {directory}") from error
        if isinstance(error, OSError):
            raise DaemonError("no daemon is running for this store and cache", hint="`imagefs mount` starts one") from error
        raise
    return connection


def _connect_patiently(connection: Socket, path: str) -> None:
    deadline = time.monotonic() + QUICK
    connection.settimeout(QUICK)
    while True:
        try:
            connection.connect(path)
        except BlockingIOError:
            # With a timeout set, a full queue is an error at once. It means that the daemon is there and busy: starting another would be
            # wrong.
            if time.monotonic() > deadline:
                raise DeadlineError("the daemon does not take connections") from None
            time.sleep(0.005)
        else:
            return


def result_of(answer: bytes) -> "dict[str, Any]":
    """Return the result in an answer, or raise the error in it."""
    try:
        document = decoded(answer)
        if document["ok"]:
            result: dict[str, Any] = document["result"]
            return result
        problem = document["error"]
    except (ValueError, KeyError, TypeError) as error:
        raise DaemonError("the daemon's answer cannot be read", hint="are client and daemon of one version?") from error
    raise rebuilt(problem)
