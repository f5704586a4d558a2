"""JSON without the package for it: what it writes and reads is what the package writes and reads."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.daemon.plain_json import decoded, encoded

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters())
_DOCUMENTS = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
_DOCUMENTS.validate()  # else the first test that draws a text has the time of building the table of all characters counted as its own


@given(st.dictionaries(st.text(st.characters()), _DOCUMENTS, max_size=8))
def test_what_is_written_is_json(document: dict[str, object]) -> None:
    assert json.loads(encoded(document)) == document
    assert b"\n" not in encoded(document)


@given(_DOCUMENTS)
def test_what_is_json_is_read(document: object) -> None:
    assert decoded(json.dumps(document, indent=1).encode() + b"\n") == document


@given(st.text('{}[]":,0123456789eE+-. \\untrfalsINy\u00e9', max_size=12))
def test_what_is_read_is_what_the_package_reads(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 # its text is shown to nobody
            decoded(text.encode())
    else:
        assert repr(decoded(text.encode())) == repr(expected)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 100_000, b"{}{}", b'{"a": 1}x'])
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # its text is shown to nobody
        decoded(data)
