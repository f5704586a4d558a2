"""Writes to S3: large ones in parts, and any of them again where the server was busy or its answer was lost.

Guarantees: an upload in parts becomes a key when it is complete, under the condition it was asked with, and not before; one that is given
up, for whatever reason, is aborted, so that its parts are not kept and paid for. Nobody but the calling thread takes part in an upload.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol, TypedDict, TypeVar

from imagefs.errors import ConflictError, DeadlineError, ImageFSError, NotFoundError, StoreError
from imagefs.store.s3_errors import may_pass

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

MULTIPART_FROM: Final = 16 * 1024 * 1024
"""Bytes above which data goes up in parts."""

PART: Final = 8 * 1024 * 1024
"""Bytes of a part, unless there would be more than the ten thousand that S3 allows."""

_PARTS_MAX: Final = 10_000
_TRIES: Final = 5
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0

_T = TypeVar("_T")


class Condition(TypedDict, total=False):
    """Under which a write takes place; always, if empty."""

    IfNoneMatch: str
    IfMatch: str


class Ask(Protocol):
    """``S3Store._ask``: a call of boto3 whose errors are ours."""

    def __call__(self, operation: str, what: str, call: Callable[["S3Client"], _T], /) -> _T:
        """Call, and return what the call returns."""


class Upload:
    """One upload of several parts, of a key that is ``name`` in the bucket."""

    def __init__(self, ask: Ask, bucket: str, name: str, key: str) -> None:
        """Nothing is asked yet."""
        self._ask = ask
        self._bucket = bucket
        self._name = name
        self._key = key

    def put(self, buffers: Sequence[memoryview], condition: Condition) -> bool:
        """Send ``buffers`` back to back; return whether they became the key: False if the condition does not hold."""
        upload = insistently(
            lambda: self._ask(
                "CreateMultipartUpload",
                self._key,
                lambda client: client.create_multipart_upload(Bucket=self._bucket, Key=self._name)["UploadId"],
            )
        )
        try:
            parts = [self._send(upload, number, body) for number, body in enumerate(_parts(buffers), 1)]
            done = self._complete(upload, parts, condition)
        except BaseException:
            self._abort(upload)
            raise
        if not done:
            self._abort(upload)
        return done

    def _send(self, upload: str, number: int, body: bytes) -> "CompletedPartTypeDef":
        def send(client: "S3Client") -> str:
            answer = client.upload_part(Bucket=self._bucket, Key=self._name, UploadId=upload, PartNumber=number, Body=body)
            return answer["ETag"]

        return {"PartNumber": number, "ETag": insistently(lambda: self._ask("UploadPart", self._key, send))}

    def _complete(self, upload: str, parts: list["CompletedPartTypeDef"], condition: Condition) -> bool:
        failed = False

        def complete(client: "S3Client") -> None:
            client.complete_multipart_upload(
                Bucket=self._bucket, Key=self._name, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            )

        def attempt() -> bool:
            nonlocal failed
            try:
                self._ask("CompleteMultipartUpload", self._key, complete)
            except ConflictError:
                return False
            except NotFoundError:
                if not failed:
                    raise
                # There is no such upload any more: the try before this one completed it, and only its answer was lost.
                self._ask("HeadObject", self._key, lambda client: client.head_object(Bucket=self._bucket, Key=self._name))
            except ImageFSError:
                failed = True
                raise
            return True

        return insistently(attempt)

    def _abort(self, upload: str) -> None:
        # What made us give up is what matters. Buckets should have a rule that removes what even this cannot: docs/s3.md.
        with suppress(ImageFSError):
            self._ask(
                "AbortMultipartUpload",
                self._key,
                lambda client: client.abort_multipart_upload(Bucket=self._bucket, Key=self._name, UploadId=upload),
            )


def insistently(attempt: Callable[[], _T]) -> _T:
    """Call ``attempt`` until it does not fail in a way that may pass, a few times, with growing pauses or those that the store asks for."""
    for number in range(_TRIES):
        try:
            return attempt()
        except (StoreError, DeadlineError) as error:
            asked: float = getattr(error, "retry_after", None) or 0.0
            if number + 1 == _TRIES or asked > _LONGEST_PAUSE or not may_pass(error.__cause__):
                raise
        # No two writers that met wait for the same time.
        time.sleep(max(asked, _FIRST_PAUSE * 2**number) * random.uniform(1, 1.5))  # noqa: S311 - nothing secret
    raise AssertionError


def _parts(buffers: Sequence[memoryview]) -> Iterator[bytes]:
    """Cut ``buffers``, as if they were one, into parts."""
    size = max(PART, -(-sum(map(len, buffers)) // _PARTS_MAX))
    part: list[memoryview] = []
    room = size
    for buffer in buffers:
        rest = buffer
        while rest:
            part.append(rest[:room])
            room -= len(part[-1])
            rest = rest[len(part[-1]) :]
            if not room:
                yield b"".join(part)
                part, room = [], size
    if part:
        yield b"".join(part)
