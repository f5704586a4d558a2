"""What the tests of the S3 store share: one real server a session, a place of its own in it for each test, and a scripted server."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping

import pytest
from botocore.loaders import create_loader

from imagefs.store.opening import open_store
from imagefs.store.s3 import S3Store
from tests.store.fake_s3 import FakeS3
from tests.weed import Weed, serving

_places = itertools.count()
OWN = {
    "AWS_ACCESS_KEY_ID": "FAKEKEY",
    "AWS_SECRET_ACCESS_KEY": "fake-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1,localhost",
}


@pytest.fixture(scope="session", autouse=True)
def _read_once() -> Iterator[None]:
    """A session of botocore reads what it knows of S3 from megabytes of JSON; all of these tests' sessions read it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", functools.cache(create_loader))
        yield


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    with serving(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """Sets this process's AWS variables, and no others."""

    def choose(environment: Mapping[str, str]) -> None:
        for name in os.environ:
            if name.startswith("AWS_") or name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return choose


@pytest.fixture
def s3_url(weed: Weed, aws: Callable[[Mapping[str, str]], None]) -> str:
    """A place on the real server that nothing is at."""
    aws(weed.environment)
    return f"s3://tests/place={next(_places)}@x+y/deep"


@pytest.fixture
def s3(s3_url: str) -> Iterator[S3Store]:
    store = open_store(s3_url, create=True)
    assert isinstance(store, S3Store)
    yield store
    store.close()


@pytest.fixture
def fake(aws: Callable[[Mapping[str, str]], None]) -> Iterator[FakeS3]:
    with FakeS3() as server:
        aws(OWN | {"AWS_ENDPOINT_URL_S3": server.endpoint})
        yield server


@pytest.fixture
def faked(fake: FakeS3) -> Iterator[S3Store]:
    """A store on the scripted server, made while it did nothing unusual."""
    store = open_store("s3://bucket/p", create=True)
    assert isinstance(store, S3Store)
    fake.requests.clear()
    yield store
    store.close()
