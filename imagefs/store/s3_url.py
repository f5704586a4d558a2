"""What an ``s3://BUCKET/PREFIX`` URL says. No I/O, and nothing of AWS's SDKs: the configuration reads URLs with it too."""

import re
from dataclasses import dataclass
from typing import Final

from imagefs.errors import UsageError

_HINT: Final = "s3://BUCKET/PREFIX"
# The rules of S3 for new buckets.
_BUCKET: Final = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MEANT: Final = re.compile(r"s3(?:[:;]|//)", re.IGNORECASE)
# What every S3 server and proxy leaves as it is, so that what one client wrote another finds.
_PART: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9!_.=@+-]+")
_PREFIX_MAX: Final = 512
"""Characters. A key of S3 has at most 1024 bytes, and the store's own part of it needs less than the other half."""


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket, and what the keys of a store in it begin with: ``""``, or a text that ends with a slash."""

    bucket: str
    prefix: str = ""

    @property
    def url(self) -> str:
        """The one spelling of this place."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def is_s3_url(text: str) -> bool:
    """Whether ``text`` is meant as an S3 URL, well written or not. A directory of such a name is written ``./s3:…``.

    Of what is not, a directory would be made, and an image converted to where nobody looks for it.
    """
    return _MEANT.match(text) is not None


def parse_s3_url(text: str) -> S3Place:
    """Read an S3 URL; ``UsageError`` says what is wrong with it."""
    scheme, _, rest = text.partition(":")
    if scheme.lower() != "s3" or not rest.startswith("//"):
        raise UsageError(f"{text}: an S3 URL has a colon and two slashes", hint=_HINT)
    bucket, _, path = rest[2:].partition("/")
    if not bucket:
        raise UsageError(f"{text}: the URL names no bucket", hint=_HINT)
    if "@" in bucket:
        raise UsageError("a store's URL holds no credentials", hint="AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if ":" in bucket:
        raise UsageError(
            f"{text}: what follows the slashes is a bucket, not a server", hint=f"{_HINT}; AWS_ENDPOINT_URL_S3 names the server"
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{text}: {bucket!r} cannot be a bucket's name",
            hint="3 to 63 lower-case letters, digits, dots and hyphens; AWS's rules say more",
        )
    parts = path.split("/") if path else []
    while parts and not parts[-1]:
        parts.pop()
    for part in parts:
        if not _PART.fullmatch(part):
            raise UsageError(
                f"{text}: {part!r} cannot be part of a store's prefix", hint="letters, digits and ! _ . = @ + - between slashes"
            )
    prefix = "".join(f"{part}/" for part in parts)
    if len(prefix) > _PREFIX_MAX:
        raise UsageError(f"{text[:80]}…: the prefix is longer than {_PREFIX_MAX} characters")
    return S3Place(bucket, prefix)
