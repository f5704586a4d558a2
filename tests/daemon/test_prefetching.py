"""Where an image's profile comes from, and what becomes of it: over a store 20 ms away on a clock that jumps."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog
import trio

from imagefs.cache.fetcher import Fetcher
from imagefs.cache.image import Image
from imagefs.cache.names import FORMER_MAX, ResolvedNames
from imagefs.daemon import requests
from imagefs.daemon.inheriting import CANDIDATES_MAX, Relatives, best_of, coverage, is_news
from imagefs.daemon.prefetching import Ahead, Prefetching
from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, StoreError
from imagefs.format.objectmap import ObjectMap, build_object_map
from imagefs.format.optimized import LAYOUT, Optimized, Start, annotated
from imagefs.format.profile import EVERY_START, Access, Key, Profile, Sample
from imagefs.store import refs
from imagefs.store.opening import open_store
from tests.cache.conftest import maker, threads_take_no_time
from tests.cache.far_bench import KIB, LATER, Bench, noise, pack, small_files
from tests.fuse.images import Maker

__all__ = ["maker", "threads_take_no_time"]

OWN, OTHER = "1" * 64, "2" * 64


def profile(contents: Sequence[bytes], manifest: str = OWN, *, label: str = "") -> Profile:
    accesses = [Access(digest_of(data), 0, 1 << 24, number, EVERY_START) for number, data in enumerate(contents)]
    return Profile(manifest, Key(label=label), 1, accesses)


@dataclass
class Shelf:
    """Profiles of this host and of a store, and who has asked for which."""

    here: dict[str, Profile] = field(default_factory=dict)
    there: dict[str, Profile] = field(default_factory=dict)
    programs: dict[str, list[Sample]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    error: Exception | None = None

    def kept(self, manifest: str, key: Key | None) -> Profile | None:
        self.asked.append(("kept", manifest))
        if self.error is not None:
            raise self.error
        return self._of(self.here, manifest, key)

    def fetch(self, manifest: str, key: Key | None) -> Profile | None:
        self.asked.append(("fetch", manifest))
        if self.error is not None:
            raise self.error
        return self._of(self.there, manifest, key)

    def samples(self, manifest: str) -> list[Sample]:
        return self.programs.get(manifest, [])

    def recent(self) -> list[str]:
        return list(self.here)

    @staticmethod
    def _of(profiles: dict[str, Profile], manifest: str, key: Key | None) -> Profile | None:
        found = profiles.get(manifest)
        return found if found is None or key is None or found.key.matches(key) else None


@dataclass
class Lot:
    """One image with small files in forty frames, and the daemon's prefetching of it."""

    bench: Bench
    files: list[bytes]
    shelf: Shelf
    maker: Maker
    annotations: dict[str, str] = field(default_factory=dict)

    def run(self, body: "Callable[[Prefetching, Image, Fetcher], Awaitable[None]]") -> None:
        async def main(fetcher: Fetcher) -> None:
            async with trio.open_nursery() as nursery:
                relatives = Relatives(self.shelf, lambda: None, self.maker.store)
                log = structlog.get_logger()
                found = Prefetching(nursery, fetcher.prefetches, self.shelf, relatives, completion=None, log=log)
                self.bench.lookup.manifest = SimpleNamespace(annotations=self.annotations)  # type: ignore[attr-defined] # of an image
                await body(found, self.bench.lookup, fetcher)  # type: ignore[arg-type] # as far as it is needed here
                nursery.cancel_scope.cancel()

        self.bench.run(main)

    @property
    def fetched(self) -> int:
        return sum(count > 0 for count in self.bench.moved())


@pytest.fixture
def lot(maker: Maker, threads_take_no_time: None) -> Iterator[Lot]:
    frames = [small_files(10, 10 * KIB, number) for number in range(40)]
    for at in range(0, 40, 10):
        pack(maker, *frames[at : at + 10])
    structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.ReturnLoggerFactory())
    yield Lot(Bench(maker), [files[3] for files in frames], Shelf(), maker)
    structlog.reset_defaults()


def mount(lot: Lot, *, ref: str = "app:2", label: str = "") -> requests.Mount:
    del lot
    return requests.Mount(mountpoint="/mnt", ref=ref, label=label)


async def followed(found: Prefetching, image: Image, request: requests.Mount) -> Ahead:
    ahead = found.ahead_of(image.name, request)
    ahead.begin(image)
    await ahead.done()
    return ahead


def named(lot: Lot) -> str:
    return lot.bench.lookup.name


# -- whose profile --------------------------------------------------------------------------------------------------------------------


def test_what_this_host_has_is_followed_before_the_store_answers(lot: Lot) -> None:
    lot.shelf.here[named(lot)] = profile(lot.files)
    answer = trio.Event()

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        ask = found._ask

        async def slow(question: Callable[[], object], ahead: Ahead) -> object:
            if ("kept", image.name) in lot.shelf.asked:
                await answer.wait()
            return await ask(question, ahead)

        found._ask = slow  # type: ignore[method-assign, assignment]
        ahead = found.ahead_of(image.name, mount(lot))
        ahead.begin(image)
        await trio.sleep(LATER)
        assert lot.fetched == 40
        assert ahead.share == 1.0

    lot.run(body)


def test_what_the_store_has_is_followed_where_this_host_has_none(lot: Lot) -> None:
    lot.shelf.there[named(lot)] = profile(lot.files[:7])

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        await followed(found, image, mount(lot))
        assert lot.fetched == 7

    lot.run(body)


def test_what_the_store_says_beyond_what_this_host_has_is_followed_too(lot: Lot) -> None:
    lot.shelf.here[named(lot)] = profile(lot.files[:7])
    lot.shelf.there[named(lot)] = profile(lot.files[:20])

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        await followed(found, image, mount(lot))
        assert lot.fetched == 20

    lot.run(body)


def test_an_image_without_a_profile_inherits_what_it_shares_with_one_that_has_one(lot: Lot) -> None:
    lot.shelf.here[OTHER] = profile([*lot.files[:30], b"what has changed"], OTHER)

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        ahead = await followed(found, image, mount(lot))
        assert lot.fetched == 30
        assert ahead.share == 1.0

    lot.run(body)


def test_a_host_that_knows_nothing_inherits_from_other_tags_of_the_name_in_the_store(lot: Lot) -> None:
    lot.shelf.there[OTHER] = profile(lot.files[:30], OTHER)
    for name, manifest in (("app:1", OTHER), ("app:2", OWN), ("app/part:9", "3" * 64), ("else:1", "4" * 64)):
        refs.publish(lot.maker.store, refs.Ref.parse(name), manifest)

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        await followed(found, image, mount(lot))
        assert lot.fetched == 30

    lot.run(body)
    assert ("fetch", "3" * 64) not in lot.shelf.asked
    assert ("fetch", "4" * 64) not in lot.shelf.asked


@pytest.mark.parametrize("where", ["here", "there"])
def test_an_optimized_image_without_a_profile_has_that_of_what_it_was_made_from(lot: Lot, where: str) -> None:
    made = Optimized(OTHER, "5" * 64, LAYOUT, Start(9, 9), Start(1, 1))
    lot.annotations = annotated({}, made)
    getattr(lot.shelf, where)[OTHER] = profile(lot.files[:11], OTHER)

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        await followed(found, image, mount(lot, ref=""))
        assert lot.fetched == 11
        assert found.followed(image.name) is not None

    lot.run(body)


def test_a_label_takes_the_profile_of_that_label_alone(lot: Lot) -> None:
    lot.shelf.here[named(lot)] = profile(lot.files[:7], label="training")

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        await followed(found, image, mount(lot, label="serving", ref=""))
        assert lot.fetched == 0
        await followed(found, image, mount(lot, label="training", ref=""))
        assert lot.fetched == 7

    lot.run(body)


@pytest.mark.parametrize(
    "error", [IntegrityError("damaged"), StoreError("away"), ValueError("a bug")], ids=lambda found: type(found).__name__
)
def test_a_profile_that_cannot_be_had_is_as_good_as_none(lot: Lot, error: Exception) -> None:
    lot.shelf.error = error

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        ahead = await followed(found, image, mount(lot))
        assert ahead.content == 0
        assert lot.fetched == 0

    lot.run(body)


# -- for how long ---------------------------------------------------------------------------------------------------------------------


def test_waiting_ends_with_the_share_that_is_waited_for(lot: Lot) -> None:
    lot.shelf.here[named(lot)] = profile(lot.files)

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        lot.bench.store.rate = 1e6
        ahead = found.ahead_of(image.name, mount(lot))
        ahead.begin(image)
        await ahead.mounted(image, 0.5)
        assert 0.5 <= ahead.share < 1.0
        await ahead.mounted(image, 1.0)
        assert ahead.share == 1.0

    lot.run(body)


def test_who_waits_for_an_image_without_a_profile_does_not_wait(lot: Lot) -> None:
    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        del fetcher
        began = trio.current_time()
        ahead = found.ahead_of(image.name, mount(lot))
        ahead.begin(image)
        await ahead.mounted(image, 1.0)
        assert trio.current_time() - began < 1.0

    lot.run(body)


def test_a_second_mount_joins_what_is_under_way(lot: Lot) -> None:
    lot.shelf.here[named(lot)] = profile(lot.files)

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        first, second = (found.ahead_of(image.name, mount(lot)) for _ in range(2))
        first.begin(image)
        second.begin(image)
        assert fetcher.prefetches.running == 1
        await second.done()
        assert first.share == second.share == 1.0
        third = await followed(found, image, mount(lot))
        assert third.share == 1.0

    lot.run(body)
    assert lot.bench.moved() == [1] * 40


def test_it_ends_with_the_last_mount_unless_somebody_has_asked_for_the_image(lot: Lot) -> None:
    lot.shelf.here[named(lot)] = profile(lot.files)

    async def body(found: Prefetching, image: Image, fetcher: Fetcher) -> None:
        lot.bench.store.rate = 1e6
        ahead = found.ahead_of(image.name, mount(lot))
        ahead.begin(image)
        await trio.sleep(0.01)
        found.keep({image.name})
        assert fetcher.prefetches.running == 1
        found.keep(set())
        await trio.sleep(0.01)
        assert not fetcher.prefetches.running
        warm = found.ahead_of(image.name, requests.Prefetch(ref="app:2"))
        warm.warm(image)
        assert found.is_busy
        await trio.sleep(0.01)
        found.keep(set())
        assert fetcher.prefetches.names() == [image.name]
        await warm.done()
        await trio.sleep(0.01)
        assert found._held == []
        assert warm.share == 1.0

    lot.run(body)


# -- which relative -------------------------------------------------------------------------------------------------------------------


def map_of(maker: Maker, contents: Sequence[bytes]) -> ObjectMap:
    pack(maker, *contents)
    return ObjectMap(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs))


def test_the_relative_with_most_of_what_it_names_is_taken_and_none_that_has_little(maker: Maker) -> None:
    contents = [noise(100, seed) for seed in range(20)]
    objects = map_of(maker, contents)
    foreign = [noise(100, seed) for seed in range(100, 200)]
    some, most, few = (profile([*contents[:count], *foreign[: 20 - count]]) for count in (8, 15, 4))
    assert coverage(most, objects) == 0.75
    assert best_of([few, some, most], objects) == most
    assert best_of([few], objects) is None
    assert best_of([], objects) is None


def test_it_is_not_looked_further_than_needed(maker: Maker) -> None:
    contents = [noise(100, seed) for seed in range(20)]
    objects = map_of(maker, contents)
    looked = 0

    def candidates(good: int) -> Iterator[Profile]:
        nonlocal looked
        for number in range(100):
            looked += 1
            yield profile(contents if number == good else [b"foreign"])

    assert best_of(candidates(2), objects) is not None
    assert looked == 3
    looked = 0
    assert best_of(candidates(50), objects) is None
    assert looked == CANDIDATES_MAX


def test_a_profile_is_news_where_a_twentieth_of_it_was_not_known() -> None:
    contents = [noise(100, seed) for seed in range(100)]
    assert not is_news(profile(contents[:99]), profile(contents))
    assert not is_news(profile(contents), profile(contents[:96]))
    assert is_news(profile(contents), profile(contents[:90]))


def test_a_name_remembers_what_it_stood_for(tmp_path: Path) -> None:
    names = ResolvedNames(tmp_path / "names", lambda error: pytest.fail(str(error)))
    for digit in "123456":
        names.passed("store", "app", digit * 64)
        names.passed("store", "app", digit * 64)
    names.passed("store", "other", "7" * 64)
    names.passed("store", "app", "4" * 64)
    assert names.former("store", "app") == [digit * 64 for digit in "4653"]
    assert len(names.former("store", "app")) == FORMER_MAX
    assert names.former("elsewhere", "app") == []
    names.close()


def test_what_a_name_stood_for_comes_before_what_was_used_last(lot: Lot, tmp_path: Path) -> None:
    lot.shelf.here = {digit * 64: profile(lot.files, digit * 64) for digit in "1234"}
    names = ResolvedNames(tmp_path / "names", lambda error: pytest.fail(str(error)))
    names.passed(lot.maker.store.url, "app", "3" * 64)
    names.passed(lot.maker.store.url, "app", "2" * 64)
    relatives = Relatives(lot.shelf, lambda: names, lot.maker.store)
    assert [found.manifest[0] for found in relatives.kept("2" * 64, "app:new")] == ["3", "1", "4"]
    names.close()


def test_a_damaged_relative_is_passed_over(lot: Lot) -> None:
    class Damaged(Shelf):
        def kept(self, manifest: str, key: Key | None) -> Profile | None:
            if manifest == OTHER:
                raise IntegrityError("damaged")
            return super().kept(manifest, key)

    shelf = Damaged({OTHER: profile([]), OWN: profile(lot.files)})
    found = list(Relatives(shelf, lambda: None, lot.maker.store).kept("5" * 64, ""))
    assert [one.manifest for one in found] == [OWN]


def test_a_store_without_that_name_has_no_relatives(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store", create=True)
    relatives = Relatives(Shelf(), lambda: None, store)
    assert list(relatives.stored(OWN, "app:1")) == []
    assert list(relatives.stored(OWN, "")) == []
    assert list(relatives.stored(OWN, "not a ref")) == []
    assert list(relatives.stored(OWN, f"app@{OWN}")) == []
    store.close()
