"""The program of a bundle, as it is run, and as its snapshot keeps it: ``bundle.json``, beside the engine's files.

A restore needs the sandbox that the program was frozen in, and the host has nothing but the snapshot. So that is kept there, in one
spelling; the record has its digest. It comes from who published the snapshot: it names no path of the host, only what is seen in the
sandbox, and is bounded and checked again where it is read. The environment is in it, as in the memory beside it.

What does not live here: reading ``config.json`` (``bundles_config``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, IntegrityError, LimitError, UnsupportedError
from imagefs.format.manifest import check_depth
from snapshotstore.checkpoint import bundle
from snapshotstore.checkpoint.base import ANY_USER, Engine, Sandbox

FILE: Final = "bundle.json"
FILE_MAX: Final = 2 << 20
"""Bytes of it, at most."""

HOSTNAME: Final = "imagefs"
_FORMAT: Final = 1
_DEPTH_MAX: Final = 4
_ID_MAX: Final = (1 << 32) - 2  # the kernel's own "none" is the one above
_HOSTNAME_MAX: Final = 64  # sethostname(2)


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    argv: tuple[str, ...]
    environment: dict[str, str]
    cwd: str
    uid: int
    gid: int
    hostname: str
    format: int = _FORMAT


_encoder: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final = msgspec.json.Decoder(_Document)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleProgram:
    """See the module."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str
    uid: int
    gid: int
    hostname: str

    def check(self) -> None:
        """Raise ``ValueError`` if no sandbox can be told that."""
        if not self.argv:
            raise ValueError("process.args names no program")
        if not self.cwd.startswith("/"):
            raise ValueError(f"process.cwd is no absolute path: {self.cwd[:80]!r}")
        if not all(0 <= number <= _ID_MAX for number in (self.uid, self.gid)):
            raise ValueError(f"there is no user {self.uid} with group {self.gid}")
        if len(self.hostname.encode(errors="replace")) > _HOSTNAME_MAX:
            raise ValueError(f"hostname has more than {_HOSTNAME_MAX} bytes")
        for text in (*self.argv, self.cwd, self.hostname, *self.environment, *self.environment.values()):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{text[:80]!r} is no Unicode text") from None
            if "\0" in text:
                raise ValueError(f"{text[:80]!r} has a zero byte")

    def refused_by(self, engine: Engine) -> ImageFSError | None:
        """Return why the engine cannot freeze a program of this user on this host, None if it can."""
        if engine.name != "criu" or ANY_USER in engine.features or (self.uid, self.gid) == (0, 0):
            return None
        return UnsupportedError(
            f"CRIU cannot freeze a program of user {self.uid} and group {self.gid} here: that takes CAP_SYS_RESOURCE",
            hint="--engine runsc, or a bundle whose process.user is 0",
        )

    def sandbox(self, *, name: str, root: Path, state: Path, output: Path, lower: tuple[Path, ...] = ()) -> Sandbox:
        """Return its sandbox on this host."""
        return Sandbox(
            name=name,
            root=root,
            state=state,
            output=output,
            lower=lower,
            argv=self.argv,
            environment=self.environment,
            cwd=self.cwd,
            uid=self.uid,
            gid=self.gid,
            hostname=self.hostname,
        )

    def spec(self) -> str:
        """Return the digest, in hex, of what has to be equal where it is restored."""
        nowhere = Path("/")
        return digest_of(bundle.encode(bundle.identity(self.sandbox(name="spec", root=nowhere, state=nowhere, output=nowhere)))).hex()


def encode(program: BundleProgram) -> bytes:
    """Write a program in its one spelling. ``LimitError`` past ``FILE_MAX``."""
    made = _Document(
        argv=program.argv,
        environment=dict(program.environment),
        cwd=program.cwd,
        uid=program.uid,
        gid=program.gid,
        hostname=program.hostname,
    )
    data = _encoder.encode(made)
    if len(data) > FILE_MAX:
        raise LimitError(f"the arguments and the environment of a bundle take {len(data)} bytes: at most {FILE_MAX} are kept")
    return data


def decode(data: bytes) -> BundleProgram:
    """Read one. ``LimitError`` past the bounds, ``UnsupportedError`` for another format, ``IntegrityError`` for what is none."""
    if len(data) > FILE_MAX:
        raise LimitError(f"{FILE} has more than {FILE_MAX} bytes")
    check_depth(data, _DEPTH_MAX, FILE)
    try:
        found = _decoder.decode(data)
        if found.format != _FORMAT:
            raise UnsupportedError(f"format {found.format} of {FILE} is not known: this version reads {_FORMAT}")
        program = BundleProgram(
            argv=found.argv,
            environment=found.environment,
            cwd=found.cwd,
            uid=found.uid,
            gid=found.gid,
            hostname=found.hostname,
        )
        program.check()
    except (msgspec.MsgspecError, UnicodeError, ValueError) as error:
        raise IntegrityError(f"{FILE} is not what a snapshot of a bundle has: {error}") from None
    if _encoder.encode(found) != data:
        raise IntegrityError(f"{FILE} is not in its one spelling")
    return program
