"""Answers in place of the server's, as S3 words them."""

from http import HTTPStatus
from typing import Final
from xml.sax.saxutils import escape

from tests.faults.script import Fault

_CODES: Final = {
    400: ("BadRequest", "Bad Request"),
    403: ("AccessDenied", "Access Denied"),
    404: ("NoSuchKey", "The specified key does not exist."),
    409: ("ConditionalRequestConflict", "A conflicting operation occurred during this one."),
    412: ("PreconditionFailed", "At least one of the pre-conditions you specified did not hold"),
    416: ("InvalidRange", "The requested range is not satisfiable"),
    429: ("TooManyRequests", "Please reduce your request rate."),
    500: ("InternalError", "We encountered an internal error. Please try again."),
    503: ("SlowDown", "Please reduce your request rate."),
}
_PAGE: Final = (
    "<!DOCTYPE html>\n<html><head><title>{0}</title></head><body><h1>{0}</h1><p>Please log in to the network.</p></body></html>\n"
)
_ERROR: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    "<Error><Code>{code}</Code><Message>{message}</Message><Resource>/{resource}</Resource><RequestId>FA17</RequestId></Error>"
)


def canned(fault: Fault, method: str, key: str, *, close: bool) -> tuple[bytes, bytes]:
    """Return head and body of the answer that ``fault`` gives; ``close`` announces the connection's end."""
    known = fault.status in HTTPStatus.__members__.values()
    reason = HTTPStatus(fault.status).phrase if known else "Unknown"
    if fault.html:
        body = _PAGE.format(f"{fault.status} {reason}").encode()
    else:
        code, message = _CODES.get(fault.status, (reason.title().replace(" ", ""), reason))
        body = _ERROR.format(code=code, message=message, resource=escape(key)).encode()
    lines = [
        f"HTTP/1.1 {fault.status} {reason}",
        f"Content-Type: {'text/html; charset=utf-8' if fault.html else 'application/xml'}",
        f"Content-Length: {len(body)}",
        "x-amz-request-id: FA17",
    ]
    if fault.retry_after is not None:
        lines.append(f"Retry-After: {fault.retry_after}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode(), b"" if method == "HEAD" else body
