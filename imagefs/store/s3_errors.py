"""What S3, its servers and the way to them say, as an error of our tree that a person can act on.

Guarantees: every exception of boto3 becomes one of ours, with what was asked for, what is wrong, and what to do; no message holds a secret.
``StoreError`` says when to ask again where the server did. What does not live here: retries, and who asks for what.
"""

import datetime
import email.utils
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import botocore.exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from imagefs.errors import (
    AccessError,
    ConflictError,
    DeadlineError,
    ImageFSError,
    IntegrityError,
    NotFoundError,
    StoreError,
    StoreFullError,
    UsageError,
)

FAILURES: Final = (BotoCoreError, ClientError, ResponseParserError, OSError, KeyError)
"""What a call of boto3 may raise: a server's answer, none, or one that is no S3; ``KeyError`` if the answer lacks what S3 always says.

Making a client may also raise ``ValueError``."""

AGAIN_SOON: Final = 0.1
"""Seconds after which a write that met another writer is tried again."""

_OUTDATED: Final = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_BUSY: Final = frozenset({"RequestLimitExceeded", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"})
_MET: Final = frozenset({"ConditionalRequestConflict", "OperationAborted", "RequestTimeout"})
_FULL: Final = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})
_ELSEWHERE: Final = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect"}
)

SOURCES: Final[Mapping[str, str]] = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "the shared credentials file (~/.aws/credentials)",
    "config-file": "the AWS configuration file (~/.aws/config)",
    "assume-role": "the role of the profile",
    "assume-role-with-web-identity": "a web identity token (AWS_WEB_IDENTITY_TOKEN_FILE)",
    "sso": "IAM Identity Center (aws sso login)",
    "login": "aws login",
    "custom-process": "the profile's credential_process",
    "ec2-credentials-file": "AWS_CREDENTIAL_FILE",
    "boto-config": "the boto configuration file",
    "container-role": "the container's role",
    "iam-role": "the instance's role",
}
"""The sources of the AWS credentials chain, by the names that botocore has for them."""

_NO_HOST = re.compile(
    r"NameResolutionError|getaddrinfo|Name or service not known|nodename nor servname|Temporary failure in name resolution"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for: the API operation, what for (a key or the bucket), of whom, with credentials from where."""

    operation: str
    what: str
    bucket: str
    endpoint: str
    region: str = ""
    source: str | None = None
    chain: tuple[str, ...] = ()

    @property
    def from_source(self) -> str:
        """Words for where the credentials come from."""
        return SOURCES.get(self.source, self.source) if self.source else "nowhere"


def code_of(error: BaseException | None) -> str:
    """Return the code of an S3 error answer, ``""`` if it is none. One without an S3 body has its HTTP status as its code."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def status_of(error: BaseException | None) -> int:
    """Return the HTTP status of an error answer, 0 if it is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(error, ClientError) else 0


def is_outdated(error: Exception) -> bool:
    """Whether other credentials may help: the chain may have new ones."""
    return code_of(error) in _OUTDATED


def may_pass(error: BaseException | None) -> bool:
    """Whether the same request may succeed a moment later: the server was busy or unwell, met another writer, or its answer was lost."""
    if isinstance(error, ClientError):
        status = status_of(error)
        return code_of(error) in _BUSY | _MET or status == 429 or (status >= 500 and status not in {501, 507})
    return isinstance(error, boto.HTTPClientError | boto.ConnectionError) and not isinstance(error, boto.SSLError)


def explain(error: Exception, asked: Asked) -> ImageFSError:
    """Return the error of ours for what a call of boto3 raised."""
    if isinstance(error, ClientError):
        return _answered(error, asked)
    for kinds, make in _UNANSWERED:
        if isinstance(error, kinds):
            return make(error, asked)
    return StoreError(f"{asked.operation} of {asked.what} failed: {_clean(str(error)) or type(error).__name__}")


# -- the server answered ------------------------------------------------------------------------------------------------------------


def _answered(error: ClientError, asked: Asked) -> ImageFSError:
    code, status = code_of(error), status_of(error)
    said = _clean(str(error.response.get("Error", {}).get("Message", "")))
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if code in {"NoSuchKey", "NoSuchUpload"} or (status == 404 and asked.operation == "HeadObject"):
        return NotFoundError(f"the store has no {asked.what}")
    if code == "NoSuchBucket":
        return StoreError(
            f"there is no bucket {asked.bucket} at {asked.endpoint}",
            hint="check --store and AWS_ENDPOINT_URL_S3; `imagefs convert` makes the bucket",
        )
    if status == 412:
        return ConflictError(f"{asked.what} was changed by another writer", hint="try again")
    if code in {"ConditionalRequestConflict", "OperationAborted"}:
        return StoreError(f"another writer is writing {asked.what}", hint="try again", retry_after=AGAIN_SOON)
    if status == 416:
        return IntegrityError(f"{asked.what} is shorter than what was to be read of it")
    if code in _OUTDATED:
        return _rejected(code, asked)
    if code == "RequestTimeTooSkewed":
        return AccessError(
            f"the store refuses requests of this host: its clock and the store's differ by {_skew(headers)}",
            hint="set this host's clock: timedatectl set-ntp true",
        )
    if code in _ELSEWHERE or status in {301, 307}:
        return _elsewhere(error, asked, headers)
    if code in _BUSY or status in {429, 503}:
        return StoreError(f"the store is busy and refuses {asked.operation} of {asked.what}: {code}", retry_after=_retry_after(headers))
    if code in _FULL or status == 507:
        return StoreFullError(f"the store has no room for {asked.what}: {code}", hint="free some space, or raise its quota")
    if (not code or code.isdigit()) and asked.operation != "HeadObject":
        return _no_s3(f"HTTP {status} without an S3 error", asked)
    if status in {401, 403}:
        return _denied(code, asked)
    return StoreError(f"{asked.operation} of {asked.what} failed: the store says {code} ({said or f'HTTP {status}'})")


def _rejected(code: str, asked: Asked) -> ImageFSError:
    if code in {"SignatureDoesNotMatch", "AuthFailure"}:
        wrong, hint = "the secret key does not belong to the access key", "check the secret key, and that no proxy rewrites requests"
    elif code in {"InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"}:
        wrong, hint = "the store does not know the access key", "check that these credentials are for this endpoint"
    else:
        wrong, hint = "the credentials have expired", "get new ones (for example `aws sso login`); a mount takes them up by itself"
    return AccessError(f"{wrong}: {code}; the credentials came from {asked.from_source}", hint=hint)


def _denied(code: str, asked: Asked) -> ImageFSError:
    missing = " (or there is none: without s3:ListBucket S3 says the same)" if asked.operation in {"GetObject", "HeadObject"} else ""
    return AccessError(
        f"the store denies {asked.operation} of {asked.what}{missing}: {code}; the credentials came from {asked.from_source}",
        hint=f"allow it in the policy of the user, the role or the bucket {asked.bucket}: docs/s3.md lists what is needed",
    )


def _elsewhere(error: ClientError, asked: Asked, headers: Mapping[str, str]) -> ImageFSError:
    details: Mapping[str, Any] = error.response.get("Error", {})
    region = headers.get("x-amz-bucket-region") or details.get("Region")
    if region:
        return StoreError(
            f"the bucket {asked.bucket} is in the region {_clean(str(region))}, and was asked for in {asked.region}",
            hint=f"AWS_REGION={_clean(str(region))}",
        )
    place = _clean(str(details.get("Endpoint") or headers.get("location") or "another endpoint"))
    return StoreError(
        f"the bucket {asked.bucket} is not at {asked.endpoint}: the server points to {place}",
        hint="check AWS_ENDPOINT_URL_S3 (http or https?) and AWS_REGION",
    )


def _no_s3(what: str, asked: Asked) -> ImageFSError:
    return StoreError(
        f"{asked.endpoint} does not answer like an S3 server: {what}",
        hint="check AWS_ENDPOINT_URL_S3: http or https, host, port; it names the S3 API, not a web console",
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Read ``Retry-After``: seconds, or a date."""
    text = headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text):
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (when - datetime.datetime.now(when.tzinfo)).total_seconds())


def _skew(headers: Mapping[str, str]) -> str:
    try:
        there = email.utils.parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return "more than S3 allows"
    return f"{abs((datetime.datetime.now(datetime.UTC) - there).total_seconds()):.0f} s"


def _clean(text: str) -> str:
    """Make one short printable line of what somebody else wrote."""
    return re.sub(r"[^ -~]+", " ", text).strip()[:300]


# -- the server did not answer ------------------------------------------------------------------------------------------------------


def _no_credentials(error: Exception, asked: Asked) -> ImageFSError:
    if isinstance(error, boto.NoCredentialsError):
        tried = ", ".join(SOURCES.get(name, name) for name in asked.chain)
        return AccessError(
            f"there are no AWS credentials for {asked.bucket}; tried: {tried}",
            hint="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return AccessError(f"the AWS credentials cannot be had: {_clean(str(error))}", hint="`aws sts get-caller-identity` tells more")


def _no_certificate(error: Exception, asked: Asked) -> ImageFSError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreError(
            f"the certificate of {asked.endpoint} is not to be trusted: {_clean(str(error).rpartition('certificate verify failed')[2])}",
            hint="AWS_CA_BUNDLE=FILE names the certificates of your own authority",
        )
    if "No such file" in str(error):
        return StoreError("the file with the certificates of the authorities to trust is not there", hint="check AWS_CA_BUNDLE")
    return StoreError(f"there is no TLS with {asked.endpoint}: {_clean(str(error))}", hint="is it http:// rather than https://?")


def _no_connection(error: Exception, asked: Asked) -> ImageFSError:
    cause = str(getattr(error, "kwargs", {}).get("error", error))
    if _NO_HOST.search(cause):
        return StoreError(
            f"the name of {asked.endpoint} cannot be resolved", hint="check AWS_ENDPOINT_URL_S3, AWS_REGION and the name service"
        )
    why = "connection refused" if "refused" in cause else _clean(cause.rpartition(": ")[2])
    return StoreError(f"cannot connect to {asked.endpoint}: {why}", hint="is the server up, and the port right?")


def _no_answer(error: Exception, asked: Asked) -> ImageFSError:
    what = "no connection" if isinstance(error, boto.ConnectTimeoutError) else "no answer"
    return DeadlineError(
        f"{what} from {asked.endpoint} in time ({asked.operation} of {asked.what})",
        hint="is the server up, and does nothing on the way (a firewall, a VPN that is down) swallow what is sent?",
    )


def _broken(error: Exception, asked: Asked) -> ImageFSError:
    if type(error) is boto.HTTPClientError:
        # What urllib3 did not foresee: most often a bundle of certificates that is not there or holds none.
        return StoreError(
            f"{asked.endpoint} cannot be asked: {_clean(str(getattr(error, 'kwargs', {}).get('error', error)))}", hint="check AWS_CA_BUNDLE"
        )
    return StoreError(
        f"the connection to {asked.endpoint} broke ({asked.operation} of {asked.what})", hint="is it an S3 server, and http or https?"
    )


def _misconfigured(error: Exception, _asked: Asked) -> ImageFSError:
    return UsageError(
        f"the AWS configuration cannot be used: {_clean(str(error))}",
        hint="see AWS_PROFILE, AWS_CONFIG_FILE, AWS_ENDPOINT_URL_S3, AWS_REGION",
    )


_UNANSWERED: Final[tuple[tuple[tuple[type[Exception], ...], Callable[[Exception, Asked], ImageFSError]], ...]] = (
    (
        (
            boto.CredentialRetrievalError,
            boto.LoginError,
            boto.MetadataRetrievalError,
            boto.NoAuthTokenError,
            boto.NoCredentialsError,
            boto.PartialCredentialsError,
            boto.RefreshWithMFAUnsupportedError,
            boto.SSOError,
            boto.TokenRetrievalError,
        ),
        _no_credentials,
    ),
    ((boto.SSLError,), _no_certificate),
    ((boto.ConnectTimeoutError, boto.ReadTimeoutError), _no_answer),
    ((boto.EndpointConnectionError, boto.ProxyConnectionError), _no_connection),
    ((boto.HTTPClientError, boto.IncompleteReadError, boto.ConnectionError), _broken),
    ((ResponseParserError,), lambda _error, asked: _no_s3("what it says is not S3's XML", asked)),
    ((KeyError,), lambda error, asked: _no_s3(f"its answer to {asked.operation} has no {error.args[0]}", asked)),
    (
        (
            boto.ConfigNotFound,
            boto.ConfigParseError,
            boto.InvalidConfigError,
            boto.InvalidRegionError,
            boto.ProfileNotFound,
            boto.UnknownCredentialError,
            boto.InvalidRetryConfigurationError,
            boto.InvalidS3AddressingStyleError,
            boto.EndpointProviderError,
            boto.ParamValidationError,
            ValueError,
        ),
        _misconfigured,
    ),
)
