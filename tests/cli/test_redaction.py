"""Secrets of every form are taken out, and what is none is left."""

import json
import time

import pytest

from imagefs_cli.redaction import HIDDEN, redacted, redacted_json, secrets_of

KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "text, secret",
    [
        ("s3://user:hunter2@bucket/prefix", "hunter2"),
        ("s3://user:hun/ter@2@bucket/prefix", "ter"),
        ("http://user:hun?ter2@host", "hun"),
        ("https://user:hun|ter2<3@host/x", "ter2"),
        ("(https://token-only@host/)", "token-only"),
        ('{"store": "s3://a:b-c-d@bucket"}', "b-c-d"),
        ("https://host/key?X-Amz-Signature=0a1b2c3d&X-Amz-Date=1", "0a1b2c3d"),
        ("https://host/key?0a1b2c3d", "0a1b2c3d"),
        ("https://host/key#0a1b2c3d", "0a1b2c3d"),
        ("AWS_SECRET_ACCESS_KEY=short", "short"),
        ("aws_secret_access_key = short", "short"),
        ('{"aws_session_token":"a b c"}', "a b c"),
        (json.dumps({"error": json.dumps({"password": "hunter2 hunter3"})}), "hunter3"),
        ("password: hunter2, user: x", "hunter2"),
        ("passwd='hunter 2'", "hunter 2"),
        ("Authorization: Bearer abcdef-123", "abcdef-123"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/2026/x, Signature=0a1b2c", "0a1b2c"),
        ('{"authorization": "Basic dXNlcjpwYXNz"}', "dXNlcjpwYXNz"),
        ("sent bearer abcdef-123 to it", "abcdef-123"),
        ("the access key AKIAIOSFODNN7EXAMPLE is not known", "AKIAIOSFODNN7EXAMPLE"),
        (f"the key {KEY} is wrong", KEY),
        ("token eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
        ("ghp_0123456789abcdefghijABCD", "ghp_0123456789abcdefghijABCD"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\nxyz\n-----END RSA PRIVATE KEY-----\n", "xyz"),
        ("-----BEGIN PRIVATE KEY-----\nMIIabc\nxyz\n", "xyz"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redacted(text)
    assert HIDDEN in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/some/prefix",
        "the store at http://127.0.0.1:8333 does not answer",
        "http://[::1]:8333/x, then",
        "file:///var/lib/imagefs/store",
        "2 tokens of 3; the credentials came from the environment",
        "a" * 64,
        "/usr/lib/python3.11/dist-packages/torch/lib/libtorch_cpu.so",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        '{"event": "mounted", "ref": "app:1", "mountpoint": "/mnt/a", "slot": 3}',
    ],
)
def test_what_is_none_is_left(text: str) -> None:
    assert redacted(text) == text


def test_values_of_variables_are_hidden_however_they_are_written() -> None:
    environment = {
        "MY_API_KEY": 'p"q/r s',
        "DB_PASS": "abcdef",
        "LONG_TOKEN": "abcdefgh",
        "PWD": "/root",
        "X_SECRET": "abc",
        "KEY": "zzzz9",
    }
    secrets = secrets_of(environment)
    assert set(secrets) == {'p"q/r s', "abcdef", "abcdefgh", "zzzz9"}
    text = 'p"q/r s p%22q/r%20s p%22q%2Fr%20s p\\"q/r s abcdef abcdefgh /root zzzz9'
    assert redacted(text, secrets) == "*** *** *** *** *** *** /root ***"


def test_json_stays_json() -> None:
    value = {"token": "a", "tokens": ["a"], "n": [1, None, True, "s3://a:b@c"], "secret_count": 3, "x": {"y": "hunter2"}, "hunter2": 1}
    assert redacted_json(value, ["hunter2"]) == {
        "token": HIDDEN,
        "tokens": HIDDEN,
        "n": [1, None, True, "s3://***@c"],
        "secret_count": 3,
        "x": {"y": HIDDEN},
        HIDDEN: 1,
    }


def test_a_long_line_takes_no_long_time() -> None:
    for piece in ("a", "token", '"token": "', "eyJ-", "-", "://", "a://", "authorization:", "basic ", "-----BEGIN PRIVATE KEY-----"):
        begin = time.process_time()
        assert redacted(piece * (200_000 // len(piece)))
        assert time.process_time() - begin < 2, piece
