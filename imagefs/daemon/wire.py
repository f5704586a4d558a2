"""Errors on their way from one process to another: described in JSON there, raised here as what they were. Imports ``errors`` alone."""

from imagefs import errors
from imagefs.errors import DaemonError, ImageFSError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any


def innermost(error: BaseException) -> BaseException:
    """Return the error that the groups which nurseries make are about."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def known(error: BaseException) -> ImageFSError:
    """Return what somebody is told of an error. One that is none of ours is a bug."""
    found = innermost(error)
    return found if isinstance(found, ImageFSError) else DaemonError(f"the daemon met a bug: {type(found).__name__}: {found}")


def described(error: BaseException) -> dict[str, object]:
    """Describe an error as ``{type, exit_code, message, hint}``."""
    found = known(error)
    return {"type": type(found).__name__, "exit_code": found.exit_code, "message": found.message, "hint": found.hint}


def rebuilt(problem: "Mapping[str, Any]") -> ImageFSError:
    """Return the error that was described. One of a class that this version does not have becomes one with its exit code."""
    kind = getattr(errors, str(problem.get("type")), None)
    if not (isinstance(kind, type) and issubclass(kind, ImageFSError)):
        kind = next((found for found in _all_errors(ImageFSError) if found.exit_code == problem.get("exit_code")), DaemonError)
    return kind(problem.get("message", "unknown error"), hint=problem.get("hint"))


def _all_errors(base: type[ImageFSError]) -> "Iterator[type[ImageFSError]]":
    yield base
    for kind in base.__subclasses__():
        yield from _all_errors(kind)
