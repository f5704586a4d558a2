"""Taking secrets out of text that leaves this host.

Two ways, one after the other: the values of variables that by their name are secrets, wherever they stand; and what looks like a secret,
by its form or by the name before it. Rather too much is taken out than too little: a report that lacks a word is still one.

Pure: text in, text out.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

HIDDEN: Final = "***"

_SENSITIVE: Final = r"secret|passw|token|credential|authorization|api[_-]?key|access[_-]?key|private[_-]?key|signature|cookie"
_IS_SENSITIVE: Final = re.compile(_SENSITIVE, re.IGNORECASE)
_IS_SECRET_VARIABLE: Final = re.compile(rf"{_SENSITIVE}|(?:^|_)(?:key|pass|pin)$", re.IGNORECASE)
_VALUE_MIN: Final = 4
"""Characters. A shorter value would be found in every other word."""

_URL: Final = re.compile(r"(?P<scheme>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,31}://)(?P<rest>[^\s\"'\\]+)")
_HOST: Final = re.compile(r"(?:[^@]*@)?(?:[^:@]*|\[.*\])(?::\d*)?[.,;:)}\]>]*")
_FORMS: Final = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        r"(?i:authorization)\\*[\"']?\s*[:=]\s*\\*[\"']?[^\r\n\"'\\]+",
        r"(?i:\b(?:bearer|basic|negotiate)\s+)[A-Za-z0-9._~+/=-]{6,}",
        r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{12,}\b",
        r"\beyJ[\w-]{1,2000}\.[\w-]{1,2000}\.[\w-]*",
        r"\bgh[pousr]_[A-Za-z0-9]{20,}",
        # A secret key of AWS's: forty characters, of all kinds. A digest has no capitals, and a path is seldom so.
        r"(?<![A-Za-z0-9/+=])(?=[^\s]{0,39}[a-z])(?=[^\s]{0,39}[A-Z])(?=[^\s]{0,39}[0-9])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    )
)
_NAMED: Final = re.compile(
    rf"""(?ix)
    (?P<name> (?:{_SENSITIVE}) [\w.-]{{0,64}} \\*["']? \s*[:=]\s* )
    (?: \\+"(?:.*?)\\+" | "(?:[^"\\]|\\.)*" | '[^']*' | [^\s,;&"'}})\]\\]+ )
    """
)


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """Return the values of the variables that are secrets by their names."""
    return [value for name, value in environment.items() if _IS_SECRET_VARIABLE.search(name) and len(value) >= _VALUE_MIN]


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """Return ``text`` with each of ``secrets``, and all that looks like one, hidden."""
    # The longest first: one may be a part of another.
    for form in sorted({form for secret in secrets for form in _spelled(secret)}, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    text = _URL.sub(_without_credentials, text)
    for pattern in _FORMS:
        text = pattern.sub(HIDDEN, text)
    return _NAMED.sub(rf"\g<name>{HIDDEN}", text)


def redacted_json(value: Any, secrets: Iterable[str] = ()) -> Any:
    """Return a JSON value likewise: text for text, so that it stays JSON."""
    secrets = list(secrets)
    if isinstance(value, dict):
        return {redacted(str(name), secrets): _part(str(name), part, secrets) for name, part in value.items()}
    if isinstance(value, list):
        return [redacted_json(part, secrets) for part in value]
    return redacted(value, secrets) if isinstance(value, str) else value


def _part(name: str, part: Any, secrets: list[str]) -> Any:
    return HIDDEN if part and isinstance(part, str | list | dict) and _IS_SENSITIVE.search(name) else redacted_json(part, secrets)


def _spelled(secret: str) -> set[str]:
    """Return how a secret may be written: as it is, in a URL, in JSON."""
    return {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}


def _without_credentials(match: re.Match[str]) -> str:
    rest = match["rest"]
    # The last one: a password may have others in it.
    before, at, after = rest.rpartition("@")
    if at and "?" not in before:
        rest = f"{HIDDEN}@{after}"
    place, mark, query = rest.partition("?")
    host, slash, path = place.partition("/")
    if not _HOST.fullmatch(host):
        # A password that makes it no URL.
        host = HIDDEN
    path, hash_, _ = path.partition("#")
    shown = match["scheme"] + host + slash + path + (hash_ and f"#{HIDDEN}")
    if mark:
        shown += "?" + "&".join(re.sub(r"=.*", f"={HIDDEN}", part) if "=" in part else HIDDEN for part in query.split("&"))
    return shown
