"""The store in an S3 bucket.

Guarantees: those of :class:`~imagefs.store.base.ObjectStore`, for any number of writers on any number of hosts, where the server has
conditional writes: a key is written with ``If-None-Match: *`` and changed with ``If-Match``, so a key is whole or absent and no update is
lost. A server without them is found out before the first write, and said; then what has a digest for a name is still safe, because all
writers write the same, but of two that change a ref at the same moment one may lose its change.

Reads are asked once: who reads has a deadline and retries. Writes are retried here, a few times. One client serves all threads. Where the
credentials are rejected the chain is gone through once more, and the request repeated if it gives others.

Assumes a server that lists what was just written (all of today's do). What does not live here: how a bucket is reached
(:mod:`~imagefs.store.s3_session`), what its errors mean (:mod:`~imagefs.store.s3_errors`), which keys there are.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from botocore.exceptions import ClientError

from imagefs.digest import Buffer
from imagefs.errors import AccessError, ConflictError, ImageFSError, NotFoundError, StoreError, UsageError
from imagefs.store.base import MARKER_KEY, ByteRange, KeyInfo, Moment, Start
from imagefs.store.s3_errors import FAILURES, code_of, explain, is_outdated, status_of
from imagefs.store.s3_ranges import exactly
from imagefs.store.s3_session import Connection, Prepared
from imagefs.store.s3_upload import MULTIPART_FROM, Condition, Upload, insistently
from imagefs.store.s3_url import S3Place

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

_KEY: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)*")
_TMP: Final = "tmp"
_NEW: Final = Condition(IfNoneMatch="*")
_NO_SUCH_VERSION: Final = '"00000000000000000000000000000000"'
_LOST_UPDATES: Final = (
    "the S3 server at %s has no conditional writes (%s): images are safe, but of two writers that set the same tag at the same moment one "
    "may lose; let only one write at a time, or use a server that knows If-None-Match and If-Match"
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class S3Store:
    """A store at ``place``, which must be one (:func:`~imagefs.store.opening.open_store` checks and creates)."""

    def __init__(self, place: S3Place, made: Prepared | None = None) -> None:
        """Find the credentials and make the client, if none is ``made``; nothing is asked of the bucket yet.

        ``close`` releases the connections.
        """
        self._place = place
        self._connection = Connection(place.bucket, made=made)
        self._renewing = threading.Lock()
        self._probing = threading.Lock()
        self._is_conditional: bool | None = None

    @property
    def url(self) -> str:
        """``s3://BUCKET/PREFIX``."""
        return self._place.url

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    # -- reading --------------------------------------------------------------------------------------------------------------------

    @overload
    def get(self, key: str) -> bytes: ...

    @overload
    def get(self, key: str, byte_range: ByteRange | None = ...) -> Buffer: ...

    def get(self, key: str, byte_range: ByteRange | None = None) -> Buffer:
        """See :meth:`ObjectStore.get <imagefs.store.base.ObjectStore.get>`."""
        if byte_range is None:
            return self.get_versioned(key)[0]
        return self._range(key, byte_range, None)

    def get_noting(self, key: str, byte_range: ByteRange, first: Moment) -> Buffer:
        """See :class:`~imagefs.store.base.FirstBytes`."""
        return self._range(key, byte_range, first)

    def _range(self, key: str, byte_range: ByteRange, first: Moment | None) -> Buffer:
        # The one place that chooses: obstore first, and boto3 for what it cannot answer.
        name = self._name(key)
        ranges = self._connection.ranges()
        data = ranges.get(name, byte_range, first) if ranges else None
        if data is not None:
            return data
        return self._ask("GetObject", key, lambda client: exactly(client, self._place.bucket, name, byte_range))

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See the protocol; a version is the ETag."""
        found = self._start(key, None)
        return found.data, found.version

    def start(self, key: str, most: int) -> Start:
        """See the protocol. No range is asked for, which an empty object would not have; the connection ends with what is not read."""
        return self._start(key, most)

    def _start(self, key: str, most: int | None) -> Start:
        name = self._name(key)

        def ask(client: "S3Client") -> Start:
            answer = client.get_object(Bucket=self._place.bucket, Key=name)
            with closing(answer["Body"]) as body:
                size, version = answer["ContentLength"], answer["ETag"]
                if most is None or size <= most:
                    return Start(body.read(), size, version)
                data = body.read(most)
            if len(data) != most:
                raise StoreError(f"the store gave {len(data)} bytes of {key} for {most}")
            return Start(data, size, "")

        return self._ask("GetObject", key, ask)

    def head(self, key: str) -> KeyInfo:
        """See the protocol."""
        name = self._name(key)

        def ask(client: "S3Client") -> KeyInfo:
            try:
                answer = client.head_object(Bucket=self._place.bucket, Key=name)
            except ClientError as error:
                if status_of(error) in {400, 403}:
                    # The answer to a HEAD has no body to say why. That to a GET has.
                    client.get_object(Bucket=self._place.bucket, Key=name, Range="bytes=0-0")["Body"].close()
                raise
            return KeyInfo(key, answer["ContentLength"], answer["LastModified"].timestamp())

        return self._ask("HeadObject", key, ask)

    def list(self, prefix: str) -> Iterator[KeyInfo]:
        """See the protocol. Reads a page of a thousand keys at a time."""
        folder = prefix[: prefix.rfind("/") + 1]
        return _in_order(self._list(prefix), folder)

    def _list(self, prefix: str) -> Iterator[KeyInfo]:
        start = len(self._place.prefix)
        token: str | None = None
        while True:
            page = self._page(prefix, token)
            for entry in page.get("Contents", []):
                key = entry["Key"][start:]
                if _is_key(key):
                    yield KeyInfo(key, entry["Size"], entry["LastModified"].timestamp())
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return

    def _page(self, prefix: str, token: str | None = None) -> "ListObjectsV2OutputTypeDef":
        whole = self._place.prefix + prefix
        if token is None:
            return self._ask("ListObjectsV2", self.url, lambda client: client.list_objects_v2(Bucket=self._place.bucket, Prefix=whole))
        return self._ask(
            "ListObjectsV2",
            self.url,
            lambda client: client.list_objects_v2(Bucket=self._place.bucket, Prefix=whole, ContinuationToken=token),
        )

    # -- writing --------------------------------------------------------------------------------------------------------------------

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        """See the protocol. Large data goes up in parts."""
        name = self._name(key)
        buffers = [
            memoryview(part).cast("B") for part in ([data] if isinstance(data, bytes | bytearray | memoryview) else data) if len(part)
        ]
        size = sum(map(len, buffers))
        condition = _NEW if self.has_conditional_writes() else Condition()
        # A large one is worth a question before it travels; and where there are no conditions that question is all there is.
        if (size > MULTIPART_FROM or not condition) and self._has(key):
            return False
        if size > MULTIPART_FROM:
            return Upload(self._ask, self._place.bucket, name, key).put(buffers, condition)
        return self._put(key, b"".join(buffers), condition) is not None

    def replace(self, key: str, data: Buffer, *, version: str | None) -> str:
        """See the protocol."""
        self._name(key)
        body = bytes(data)
        lost = ConflictError(f"{key} was changed by another writer", hint="try again")
        condition = _NEW if version is None else Condition(IfMatch=version)
        if not self.has_conditional_writes():
            try:
                current: str | None = self.get_versioned(key)[1]
            except NotFoundError:
                current = None
            if current != version:
                raise lost
            condition = Condition()
        try:
            written = self._put(key, body, condition)
        except NotFoundError:
            written = None  # The key was deleted: S3 says so rather than that the version is another.
        if written is None:
            raise lost
        return written

    def _put(self, key: str, body: bytes, condition: Condition) -> str | None:
        """Write a key in one request; return its version, or None if the condition does not hold."""
        name = self._name(key)

        def put(client: "S3Client") -> str:
            return client.put_object(Bucket=self._place.bucket, Key=name, Body=body, **condition)["ETag"]

        failed = False

        def attempt() -> str | None:
            nonlocal failed
            try:
                return self._ask("PutObject", key, put)
            except ConflictError:
                # After a failure that may have been one of the answer alone, the writer that was faster may be this one.
                return self._version_of(key, body) if failed else None
            except ImageFSError:
                failed = True
                raise

        return insistently(attempt)

    def delete(self, key: str) -> bool:
        """See the protocol. Of several that delete at the same moment more than one may be told that it was there."""
        name = self._name(key)
        if not self._has(key):
            return False
        self._ask("DeleteObject", key, lambda client: client.delete_object(Bucket=self._place.bucket, Key=name))
        return True

    def has_conditional_writes(self) -> bool:
        """Whether the server honours the conditions of a write; asked of it once, and said if it does not.

        The key that is asked with is the marker: a server that ignores the condition writes the same bytes again.
        """
        with self._probing:
            if self._is_conditional is None:
                try:
                    marker = self.get(MARKER_KEY)
                except NotFoundError:
                    return True  # This is the store's first write, which is the marker's. The next one asks.
                missing = self._missing_condition(marker)
                self._is_conditional = not missing
                if missing:
                    _log.warning(_LOST_UPDATES, self._connection.client.meta.endpoint_url, missing)
            return self._is_conditional

    def _missing_condition(self, marker: bytes) -> str:
        """Return the condition that the server does not know, or ``""``."""
        name = self._name(MARKER_KEY)
        for condition in (_NEW, Condition(IfMatch=_NO_SUCH_VERSION)):
            (header,) = condition

            try:
                self._overwrite(name, marker, condition)
            except ConflictError:
                continue
            except AccessError:
                # Whoever may write but a few keys, and not this one, learns from those.
                return ""
            except StoreError as error:
                if status_of(error.__cause__) != 501:
                    raise
            return header
        return ""

    def _overwrite(self, name: str, data: bytes, condition: Condition) -> None:
        def put(client: "S3Client") -> None:
            client.put_object(Bucket=self._place.bucket, Key=name, Body=data, **condition)

        insistently(lambda: self._ask("PutObject", MARKER_KEY, put))

    # -- what opening a store needs ---------------------------------------------------------------------------------------------------

    def marker(self, most: int) -> Start | None:
        """Return how the marker starts; None if there is none, or no bucket."""
        try:
            return self.start(MARKER_KEY, most)
        except NotFoundError:
            return None
        except StoreError as error:
            if code_of(error.__cause__) != "NoSuchBucket":
                raise
            return None

    def holds_something(self, *, make_bucket: bool) -> bool:
        """Whether there is anything below the prefix that is neither a folder's own key nor under ``tmp/``.

        ``StoreError`` if there is no bucket, unless it is to be made.
        """
        try:
            page = self._page("")
        except StoreError as error:
            if not make_bucket or code_of(error.__cause__) != "NoSuchBucket":
                raise
            self._make_bucket()
            return False
        names = [entry["Key"][len(self._place.prefix) :] for entry in page.get("Contents", [])]
        return any(name and not name.startswith(f"{_TMP}/") for name in names)

    def _make_bucket(self) -> None:
        def make(client: "S3Client") -> None:
            region = self._connection.region
            if self._connection.is_aws and region != "us-east-1":
                # Any region, also one that the stubs do not know.
                place: Any = {"LocationConstraint": region}
                client.create_bucket(Bucket=self._place.bucket, CreateBucketConfiguration=place)
            else:
                client.create_bucket(Bucket=self._place.bucket)

        try:
            self._ask("CreateBucket", self._place.bucket, make)
        except StoreError as error:
            # Another writer may make it at the same moment.
            if code_of(error.__cause__) != "BucketAlreadyOwnedByYou":
                raise

    def settle(self) -> None:
        """Connect to the region that the bucket turned out to be in. Nobody else uses the store yet."""
        if self._connection.is_elsewhere:
            other = Connection(self._place.bucket, self._connection.region)
            self._connection.close()
            self._connection = other

    # -- inside ---------------------------------------------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        if not _is_key(key):
            raise UsageError(f"not a key of a store: {key[:120]!r}")
        return self._place.prefix + key

    def _has(self, key: str) -> bool:
        try:
            self.head(key)
        except NotFoundError:
            return False
        return True

    def _version_of(self, key: str, body: bytes) -> str | None:
        with suppress(NotFoundError):
            data, version = self.get_versioned(key)
            if data == body:
                return version
        return None

    def _ask(self, operation: str, what: str, call: Callable[["S3Client"], _T]) -> _T:
        """Call boto3, once more with new credentials if the chain has others than those rejected; every error is one of ours."""
        connection = self._connection
        try:
            try:
                return call(connection.client)
            except ClientError as error:
                if not is_outdated(error) or not self._renewed(connection):
                    raise
            connection = self._connection
            return call(connection.client)
        except FAILURES as error:
            raise explain(error, connection.asked(operation, what)) from error

    def _renewed(self, rejected: Connection) -> bool:
        """Whether there is now a connection with other credentials than those of ``rejected``."""
        with self._renewing:
            if self._connection is not rejected:
                return True
            if not rejected.has_other_keys():
                return False
            # The old one is left to whoever is in the middle of a request with it.
            self._connection = Connection(self._place.bucket, rejected.region)
            return True


def _is_key(key: str) -> bool:
    return _KEY.fullmatch(key) is not None and key.split("/", 1)[0] != _TMP


def _in_order(infos: Iterable[KeyInfo], folder: str) -> Iterator[KeyInfo]:
    """Put a listing below ``folder`` into bytewise order, holding no more of it than has to be.

    AWS lists bytewise. Servers on top of a tree of folders list ``a/x`` before ``a-b``, as the name ``a`` sorts before ``a-b``. Either way
    all that may have to change places begins with the same folder's name, and then a slash or one of the characters that sort before it.
    """
    held: list[KeyInfo] = []
    name = ""
    for info in infos:
        below = info.key[len(folder) :]
        if held and not (below.startswith(name) and below[len(name) : len(name) + 1] <= "/"):
            yield from sorted(held, key=lambda one: one.key)
            held = []
        if held or "/" in below:
            name = name if held else below.partition("/")[0]
            held.append(info)
        else:
            yield info
    yield from sorted(held, key=lambda one: one.key)
