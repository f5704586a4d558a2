"""One way to an S3 bucket: the AWS session, its client, and the credentials that both kinds of requests are signed with.

Guarantees: a :class:`Connection` is made once, never changes what it is connected to, and is shared by all threads. Credentials are asked
of the session for each request, so that those of a role are renewed while a store is open; whether the chain has others than those that a
server rejects is found out by going through it anew. boto3 reads the environment and the AWS files; from us it gets the region.

What does not live here: what is asked of the bucket, and what its answers mean.
"""

import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialResolver, Credentials, ReadOnlyCredentials
from botocore.exceptions import ClientError
from botocore.httpsession import DEFAULT_CA_BUNDLE
from obstore.exceptions import BaseError

from imagefs.config import aws_region
from imagefs.store.s3_errors import FAILURES, Asked, explain
from imagefs.store.s3_ranges import FastRanges

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

THREADS: Final = 64
"""Connections that are kept open to the server: one for each thread that may ask at the same time."""

CONNECT_SECONDS: Final = 3.0
READ_SECONDS: Final = 10.0
"""The longest silence of a server that is waited out."""

_FIRST_REGION: Final = "us-east-1"
_REDIRECTS: Final = frozenset({301, 302, 307})
"""The statuses after which botocore asks for the bucket's region."""

_SETTINGS: Final = Config(
    connect_timeout=CONNECT_SECONDS,
    read_timeout=READ_SECONDS,
    # Readers have a deadline and a retry loop of their own, and writers are retried in s3.py: two loops would multiply.
    retries={"total_max_attempts": 1, "mode": "standard"},
    max_pool_connections=THREADS,
    # Everything is verified by its BLAKE3; and servers other than AWS's know none of the newer checksums.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    tcp_keepalive=True,
    user_agent_extra="imagefs",
)


class _Later(Credentials):
    """Credentials that are found after the client was made that signs with them."""

    def __init__(self) -> None:
        super().__init__("", "")
        self.found: Credentials | None = None

    def get_frozen_credentials(self) -> ReadOnlyCredentials | None:  # type: ignore[override] # None is what botocore takes for none
        """Return those to sign with now."""
        return None if self.found is None else self.found.get_frozen_credentials()


class Prepared:
    """A session and a client that have not looked for credentials and asked nobody anything: they can be made before a fork.

    Making them is most of the time that it takes to connect.
    """

    def __init__(self, region: str | None = None) -> None:
        """Read the AWS configuration. botocore's errors if it is none."""
        self.session = botocore.session.Session()
        chosen = region or aws_region() or self.session.get_config_variable("region") or _FIRST_REGION
        self.chain: CredentialResolver = self.session.get_component("credential_provider")
        self._later = _Later()
        self.session.register_component("credential_provider", self)
        self.client: S3Client = boto3.Session(botocore_session=self.session, region_name=chosen).client("s3", config=_SETTINGS)

    def load_credentials(self) -> Credentials:
        """Be asked by the client."""
        return self._later

    def find_credentials(self) -> Credentials | None:
        """Go through the chain; the client signs with what is found."""
        self._later.found = self.chain.load_credentials()
        return self._later.found


def prepared() -> Prepared | None:
    """Return a client for one connection, made before a fork; None where none can be made, which a later one will say the reason of.

    All code is loaded that connections need, and no thread started.
    """
    with suppress(*FAILURES, ValueError):
        return Prepared()
    return None


class Connection:
    """A session and its client for one bucket."""

    def __init__(self, bucket: str, region: str | None = None, *, made: Prepared | None = None) -> None:
        """Make the client, if none is ``made``, and resolve the credentials chain. ``UsageError`` if the AWS configuration is none."""
        self._bucket = bucket
        self._lock = threading.Lock()
        self._found_region: str | None = None
        asked = Asked("connection", bucket, bucket, "S3")
        try:
            made = made or Prepared(region)
            self._session, self._chain, self.client = made.session, made.chain, made.client
            self._credentials = made.find_credentials()
        except (*FAILURES, ValueError) as error:
            raise explain(error, asked) from error
        self.client.meta.events.register("response-received.s3", self._note_region)
        self.client.meta.events.register("response-received.s3.HeadBucket", _end_of_redirects)

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()

    @property
    def region(self) -> str:
        """The bucket's region if the server told, otherwise the one that requests are sent to."""
        return self._found_region or self.client.meta.region_name

    @property
    def is_elsewhere(self) -> bool:
        """Whether the bucket is in another region than this connection's."""
        return self.region != self.client.meta.region_name

    @cached_property
    def is_aws(self) -> bool:
        """Whether the server is AWS's own."""
        host = self.client.meta.endpoint_url.partition("://")[2].partition("/")[0]
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    def asked(self, operation: str, what: str) -> Asked:
        """Describe a request, for an error."""
        return Asked(
            operation,
            what,
            self._bucket,
            self.client.meta.endpoint_url,
            self.client.meta.region_name,
            self._credentials.method if self._credentials else None,
            tuple(str(provider.METHOD) for provider in self._chain.providers),
        )

    def ranges(self) -> FastRanges | None:
        """Return what ranges are read with, made at the first call; None if it cannot be had, which boto3 will say the reason of."""
        with self._lock:
            try:
                return self._ranges
            except (*FAILURES, BaseError, ValueError):
                return None

    @cached_property
    def _ranges(self) -> FastRanges | None:
        if self._credentials is None:
            return None
        # boto3 knows all the rules of where a bucket is: what it would ask is what is asked.
        url = self.client.generate_presigned_url("get_object", Params={"Bucket": self._bucket, "Key": "key"})
        bundle = self._session.get_config_variable("ca_bundle") or DEFAULT_CA_BUNDLE
        return FastRanges(url, self._bucket, self.region, self.keys, ca_bundle=bundle, connect=CONNECT_SECONDS, silence=READ_SECONDS)

    def keys(self) -> tuple[str, str, str | None]:
        """Return access key, secret key and token as they are now: those of a role are renewed before they expire."""
        assert self._credentials is not None
        frozen = self._credentials.get_frozen_credentials()
        return frozen.access_key or "", frozen.secret_key or "", frozen.token

    def has_other_keys(self) -> bool:
        """Whether the credentials chain, gone through anew, gives others than this connection's."""
        try:
            found = botocore.session.Session().get_credentials()
            if found is None:
                return False
            frozen = found.get_frozen_credentials()
            return self._credentials is None or (frozen.access_key, frozen.secret_key, frozen.token) != self.keys()
        except FAILURES:
            return False

    def _note_region(self, response_dict: Mapping[str, Any] | None, **_: Any) -> None:
        """Remember the region that an answer names. The client follows it by itself, but asks the wrong place first each time."""
        if response_dict is not None and response_dict["status_code"] >= 300:
            self._found_region = response_dict["headers"].get("x-amz-bucket-region") or self._found_region


def _end_of_redirects(response_dict: Mapping[str, Any] | None, **_: Any) -> None:
    """End the search for a bucket's region where its answer is one more redirect that names none, as of a web server to ``https``.

    botocore would ask for the region of that answer again, until the stack is full.
    """
    if response_dict is not None and response_dict["status_code"] in _REDIRECTS and "x-amz-bucket-region" not in response_dict["headers"]:
        raise ClientError({"Error": {}, "ResponseMetadata": {"HTTPHeaders": {}}}, "HeadBucket")  # type: ignore[typeddict-item] # what is read of it
