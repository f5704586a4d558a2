"""What is fetched ahead, as soon as it is known which program of the image runs."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from imagefs.cache.fetcher import Fetcher
from imagefs.cache.image import Image
from imagefs.daemon import requests
from imagefs.daemon.prefetching import Ahead, Prefetching
from imagefs.errors import IntegrityError
from imagefs.format.profile import Key, Sample
from tests.cache.conftest import maker, threads_take_no_time
from tests.cache.far_bench import LATER
from tests.daemon.test_prefetching import Lot, lot, mount, named, profile

__all__ = ["lot", "maker", "threads_take_no_time"]

TRAIN, SERVE = Key("python train.py"), Key("python serve.py")


@pytest.fixture
def two(lot: Lot) -> Lot:
    """Starts of two programs are known: one needs the first half, the other the second; and a slow link."""
    halves = {TRAIN: lot.files[:20], SERVE: lot.files[20:]}
    name = named(lot)
    lot.shelf.here[name] = profile(lot.files, name)
    lot.shelf.programs[name] = [Sample(replace(profile(files, name), key=key), 1.0) for key, files in halves.items()]
    return lot


def halves(lot: Lot) -> tuple[int, int]:
    """Return how many frames of each half were fetched."""
    moved = [count > 0 for count in lot.bench.moved()]
    return sum(moved[:20]), sum(moved[20:])


async def started(found: Prefetching, image: Image, lot: Lot, *points: str) -> Ahead:
    """Mount, and be where a few frames have come."""
    lot.bench.store.rate = 1e6
    for point in points:
        found.expects(image.name, point)
    ahead = found.ahead_of(image.name, mount(lot))
    ahead.begin(image)
    await trio.sleep(0.01)
    return ahead


def test_of_the_program_that_runs_all_comes_and_of_the_others_hardly_anything(two: Lot) -> None:
    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        ahead = await started(found, image, two, "/mnt")
        found.runs(image.name, "/mnt", Key("runc init"), settled=False)
        found.runs(image.name, "/mnt", SERVE, settled=False)
        found.runs(image.name, "/mnt", SERVE, settled=True)
        await ahead.done()
        assert ahead.share == 1.0
        followed = found.followed(image.name)
        assert followed is not None
        assert followed.profile.key == SERVE
        found.gone(image.name, "/mnt")

    two.run(body)
    train, serve = halves(two)
    assert serve == 20
    assert train <= 16, "what was under way before"


def test_of_two_that_start_both_come(two: Lot) -> None:
    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        ahead = await started(found, image, two, "/one", "/two")
        found.runs(image.name, "/one", SERVE, settled=True)
        found.runs(image.name, "/two", TRAIN, settled=True)
        await ahead.done()
        assert ahead.share == 1.0

    two.run(body)
    assert halves(two) == (20, 20)


def test_while_one_is_not_known_and_while_somebody_wants_the_image_itself_all_comes(two: Lot) -> None:
    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        ahead = await started(found, image, two, "/one", "/two")
        found.runs(image.name, "/one", SERVE, settled=True)
        await ahead.done()
        assert halves(two) == (20, 20)

    two.run(body)

    async def warm(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        two.bench.store.rate = 1e6
        ahead = found.ahead_of(image.name, requests.Prefetch(ref="app:2"))
        ahead.warm(image)
        await trio.sleep(0.01)
        found.expects(image.name, "/mnt")
        found.runs(image.name, "/mnt", SERVE, settled=True)
        await ahead.done()
        await ahead.over()
        assert halves(two) == (20, 20)

    two.run(warm)


def test_another_mount_widens_what_is_followed_again(two: Lot) -> None:
    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        ahead = await started(found, image, two, "/one")
        found.runs(image.name, "/one", SERVE, settled=True)
        await trio.sleep(0.01)
        found.expects(image.name, "/two")
        await ahead.done()

    two.run(body)
    assert halves(two) == (20, 20)


@pytest.mark.parametrize("settled", [True, False])
def test_a_program_of_which_no_start_is_known_gets_no_more_than_it_proves_to_need(two: Lot, settled: bool) -> None:
    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        ahead = await started(found, image, two, "/mnt")
        found.runs(image.name, "/mnt", Key("sh -c find"), settled=settled)
        await trio.sleep(LATER)
        assert (sum(halves(two)) < 40) == settled
        if settled:
            for data in two.files[30:]:
                await two.bench.read(fetcher, data)
            await ahead.done()
            assert sum(halves(two)) == 40, "the same program, started otherwise"

    two.run(body)


def test_what_the_store_says_later_is_narrowed_too(two: Lot) -> None:
    name = named(two)
    two.shelf.there[name] = profile([*two.files, b"news", b"more news", b"yet more"], name)
    answer = trio.Event()

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        ask = found._ask

        async def slow(question: Callable[[], object], ahead: Ahead) -> object:
            if ("kept", image.name) in two.shelf.asked and ("fetch", image.name) not in two.shelf.asked and not answer.is_set():
                two.shelf.asked.append(("fetch", image.name))
                await answer.wait()
            return await ask(question, ahead)

        found._ask = slow  # type: ignore[method-assign, assignment]
        ahead = await started(found, image, two, "/mnt")
        found.runs(image.name, "/mnt", SERVE, settled=True)
        await trio.sleep(0.01)
        answer.set()
        await ahead.done()

    two.run(body)
    train, serve = halves(two)
    assert serve == 20
    assert train <= 16


@pytest.mark.parametrize("error", [IntegrityError("damaged"), OSError(5, "a bug")])
def test_where_it_cannot_be_said_which_starts_are_whose_all_comes(two: Lot, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(_: str) -> list[Sample]:
        raise error

    monkeypatch.setattr(two.shelf, "samples", broken)

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        ahead = await started(found, image, two, "/mnt")
        found.runs(image.name, "/mnt", SERVE, settled=True)
        await ahead.done()

    two.run(body)
    assert halves(two) == (20, 20)
