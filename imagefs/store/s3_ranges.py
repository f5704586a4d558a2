"""Ranged GETs, which are what a mount asks a store for: through obstore, because it costs less (``./dev bench ranged-get``).

Guarantees: the bytes that come out are exactly those asked for. obstore checks neither the length of what it got nor tells errors apart
by more than their text; so whatever it does not answer in full is asked again of boto3, which knows why, and answers for the result.
Only a server that has gone silent, or dies in the middle of an answer, is not asked twice.

:func:`exactly` is the way with boto3. What does not live here: retries; which of the two is asked first (``S3Store.get``).
"""

import datetime
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from imagefs.errors import DeadlineError, IntegrityError, StoreError
from imagefs.store.base import ByteRange, Moment

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from obstore.store import ClientConfig, S3Credential

_WHOLE_SECONDS: Final = 60.0
"""The longest that one GET may take, however steadily it trickles."""

_KEEP_CREDENTIALS: Final = datetime.timedelta(minutes=1)
"""Less than the five minutes at which obstore asks for others: so it asks each time, or after a tenth of a second."""

_NOTED: Final = 512 * 1024
"""Bytes of a GET from which on it is noted when its first byte comes: of smaller ones next to all of the time is before that, and to note
it costs a tenth of a small GET."""

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class FastRanges:
    """A bucket as obstore sees it."""

    def __init__(
        self,
        url: str,
        bucket: str,
        region: str,
        keys: Callable[[], tuple[str, str, str | None]],
        *,
        ca_bundle: str,
        connect: float,
        silence: float,
    ) -> None:
        """Take where an object named ``key`` is from ``url``. ``keys`` gives the credentials of the moment.

        ``connect`` and ``silence`` are the seconds that are waited for a connection and for more of an answer.
        """
        self._keys = keys
        parts = urlsplit(url)
        by_path = parts.path.endswith(f"/{bucket}/key")
        place = parts.path.removesuffix(f"/{bucket}/key" if by_path else "/key")
        options: ClientConfig = {
            "allow_http": parts.scheme == "http",
            "connect_timeout": datetime.timedelta(seconds=connect),
            "read_timeout": datetime.timedelta(seconds=silence),
            "timeout": datetime.timedelta(seconds=_WHOLE_SECONDS),
        }
        if parts.scheme == "https":
            # Those that boto3 goes by.
            options["root_certificate"] = Path(ca_bundle).read_bytes()
        self._store = S3Store(
            bucket,
            # obstore reads the environment too: each of these keeps it from it.
            config={
                "aws_endpoint_url_s3": f"{parts.scheme}://{parts.netloc}{place}",
                "region": region,
                "virtual_hosted_style_request": not by_path,
                "skip_signature": False,
            },
            client_options=options,
            retry_config={"max_retries": 0},
            credential_provider=self._credential,
        )

    def get(self, key: str, byte_range: ByteRange, first: Moment | None = None) -> memoryview | None:
        """Return exactly the bytes, or None where boto3 has to be asked why not. ``first``: when a large answer began is noted there."""
        try:
            if first is None or byte_range.end - byte_range.start < _NOTED:
                data = obstore.get_range(self._store, key, start=byte_range.start, end=byte_range.end)
            else:
                answer = obstore.get(self._store, key, options={"range": (byte_range.start, byte_range.end)})
                first.note()
                data = answer.bytes()
        except (BaseError, OSError) as error:
            text = str(error)
            if "kind: Timeout" in text or "TimedOut" in text:
                raise DeadlineError(f"no answer from the store in time (GetObject of {key})") from error
            if "kind: Interrupted" in text:
                raise StoreError(f"the connection to the store broke (GetObject of {key})") from error
            return None
        return memoryview(data) if len(data) == byte_range.end - byte_range.start else None

    def _credential(self) -> "S3Credential":
        access, secret, token = self._keys()
        expires = datetime.datetime.now(datetime.UTC) + _KEEP_CREDENTIALS
        return {"access_key_id": access, "secret_access_key": secret, "token": token, "expires_at": expires}


def exactly(client: "S3Client", bucket: str, key: str, byte_range: ByteRange) -> bytes:
    """Return the bytes with one GET of boto3. ``IntegrityError`` if the object is shorter, ``StoreError`` if the answer is another."""
    want = byte_range.end - byte_range.start
    answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={byte_range.start}-{byte_range.end - 1}")
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    with closing(answer["Body"]) as body:
        match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
        if status != 206 or match is None:
            raise StoreError(f"the store does not give parts of {key}: it answers {status}", hint="a proxy may not pass on ranges")
        start, last = int(match[1]), int(match[2])
        if match[3] != "*" and int(match[3]) < byte_range.end:
            raise IntegrityError(f"{key} ends at byte {match[3]}: {byte_range.end} were to be read")
        if (start, last + 1) != (byte_range.start, byte_range.end):
            raise StoreError(f"the store gave bytes {start} to {last + 1} of {key} for {byte_range.start} to {byte_range.end}")
        data = body.read()
    if len(data) != want:
        raise StoreError(f"the store gave {len(data)} bytes of {key} for {want}")
    return data
