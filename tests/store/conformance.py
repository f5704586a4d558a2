"""What every ``ObjectStore`` must do. A test class inherits this and gives ``store``, an empty store of the kind."""

import threading

import pytest

from imagefs.errors import ConflictError, IntegrityError, NotFoundError, UsageError
from imagefs.store.base import ByteRange, ObjectStore


class StoreConformance:
    """The contract of :mod:`imagefs.store.base`, point by point."""

    def test_what_was_put_is_got(self, store: ObjectStore) -> None:
        assert store.put_if_absent("packs/a", b"content") is True
        assert store.get("packs/a") == b"content"
        assert store.head("packs/a").size == 7

    def test_an_empty_blob(self, store: ObjectStore) -> None:
        assert store.put_if_absent("packs/a", b"")
        assert store.get("packs/a") == b""

    def test_parts_are_written_back_to_back(self, store: ObjectStore) -> None:
        parts = [b"x" * (n % 7) for n in range(3000)]
        assert store.put_if_absent("packs/a", [memoryview(b"one"), bytearray(b"two"), *parts])
        assert store.get("packs/a") == b"onetwo" + b"".join(parts)

    def test_what_is_there_is_left_alone(self, store: ObjectStore) -> None:
        store.put_if_absent("packs/a", b"first")
        assert store.put_if_absent("packs/a", b"second") is False
        assert store.get("packs/a") == b"first"

    @pytest.mark.parametrize(("start", "end"), [(0, 1), (3, 7), (9, 10), (0, 10)])
    def test_a_range_is_exactly_that(self, store: ObjectStore, start: int, end: int) -> None:
        store.put_if_absent("packs/a", b"0123456789")
        assert store.get("packs/a", ByteRange(start, end)) == b"0123456789"[start:end]

    def test_a_range_past_the_end_is_an_error_and_not_short(self, store: ObjectStore) -> None:
        store.put_if_absent("packs/a", b"0123456789")
        with pytest.raises(IntegrityError):
            store.get("packs/a", ByteRange(5, 11))

    @pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 3_000_000])
    def test_a_start_is_so_many_bytes_or_all(self, store: ObjectStore, size: int) -> None:
        data = bytes(n % 251 for n in range(size))
        version = store.replace("refs/a/b", data, version=None)
        assert store.start("refs/a/b", 10) == (data[:10], size, version if size <= 10 else "")
        assert store.start("refs/a/b", 10).is_all == (size <= 10)

    def test_what_is_not_there(self, store: ObjectStore) -> None:
        for call in (store.get, store.head, store.get_versioned, lambda key: store.start(key, 10)):
            with pytest.raises(NotFoundError):
                call("packs/none")
        assert store.delete("packs/none") is False
        assert list(store.list("packs/")) == []

    def test_a_key_is_not_its_prefix(self, store: ObjectStore) -> None:
        store.put_if_absent("refs/name/tag", b"x")
        for call in (store.get, store.head):
            with pytest.raises(NotFoundError):
                call("refs/name")
            with pytest.raises(NotFoundError):
                call("refs/name/tag/below")

    def test_delete(self, store: ObjectStore) -> None:
        store.put_if_absent("packs/a", b"x")
        assert store.delete("packs/a") is True
        assert store.delete("packs/a") is False
        assert store.put_if_absent("packs/a", b"again") is True

    def test_a_listing_is_in_bytewise_order(self, store: ObjectStore) -> None:
        keys = ["refs/a/1", "refs/a/b/1", "refs/a-b/1", "refs/a.b/2", "refs/B/1", "refs/a/10", "packs/x"]
        for key in keys:
            store.put_if_absent(key, key.encode())
        assert [info.key for info in store.list("refs/")] == sorted(key for key in keys if key.startswith("refs/"))
        assert [info.key for info in store.list("refs/a/")] == ["refs/a/1", "refs/a/10", "refs/a/b/1"]
        assert [info.key for info in store.list("refs/a/1")] == ["refs/a/1", "refs/a/10"]
        assert [info.size for info in store.list("packs/")] == [7]

    def test_replace_compares_and_swaps(self, store: ObjectStore) -> None:
        first = store.replace("refs/a/b", b"1", version=None)
        with pytest.raises(ConflictError):
            store.replace("refs/a/b", b"2", version=None)
        assert store.get_versioned("refs/a/b") == (b"1", first)
        second = store.replace("refs/a/b", b"2", version=first)
        with pytest.raises(ConflictError):
            store.replace("refs/a/b", b"3", version=first)
        assert store.get_versioned("refs/a/b") == (b"2", second)
        store.delete("refs/a/b")
        with pytest.raises(ConflictError):
            store.replace("refs/a/b", b"4", version=second)

    def test_of_many_writers_one_wins(self, store: ObjectStore) -> None:
        start = threading.Barrier(8)
        won: list[bytes] = []

        def write(data: bytes) -> None:
            start.wait(30)
            if store.put_if_absent("packs/a", data):
                won.append(data)

        threads = [threading.Thread(target=write, args=(bytes([n]) * 100_000,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(won) == 1
        assert store.get("packs/a") == won[0]

    def test_no_update_is_lost(self, store: ObjectStore) -> None:
        store.replace("refs/count/x", b"0", version=None)

        def count() -> None:
            for _ in range(20):
                while True:
                    data, version = store.get_versioned("refs/count/x")
                    try:
                        store.replace("refs/count/x", b"%d" % (int(data) + 1), version=version)
                    except ConflictError:
                        continue
                    break

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert store.get("refs/count/x") == b"80"

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "packs/..", "packs/.", "packs/.hidden", "a b", "packs/\n", "packs/é"])
    def test_a_key_that_is_none_is_refused(self, store: ObjectStore, key: str) -> None:
        for call in (store.get, store.head, store.get_versioned, store.delete, lambda k: store.put_if_absent(k, b"")):
            with pytest.raises(UsageError):
                call(key)
