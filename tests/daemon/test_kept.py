"""What outlives a supervisor, with a service manager that is this process: what is gone on with, what is given up, what is made again."""

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

import pytest

from imagefs.config import ManagerSettings
from imagefs.daemon.instance import INIT_NAME, LOCK_NAME, Role
from imagefs.daemon.kept import Kept
from imagefs.daemon.notify import ServiceManager
from imagefs.mount.bind import unmount
from tests.daemon.place import Place


class Keeper(ServiceManager):
    """Keeps what it is given, and gives it again."""

    def __init__(self) -> None:
        super().__init__(ManagerSettings())
        self.kept: dict[str, int] = {}

    @property
    def is_there(self) -> bool:
        return True

    def store(self, name: str, descriptor: int) -> bool:
        assert name not in self.kept, "it would have two"
        self.kept[name] = os.dup(descriptor)
        return True

    def drop(self, name: str) -> None:
        if name in self.kept:
            os.close(self.kept.pop(name))

    def stored(self) -> list[tuple[str, int]]:
        return [(name, os.dup(descriptor)) for name, descriptor in self.kept.items()]


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper()
    yield made
    for name in list(made.kept):
        made.drop(name)


def begun(role: Role, keeper: Keeper, *, answered: bool = True) -> str:
    """Be a supervisor, up to the moment when it dies; return the socket that it had."""
    with Kept(role, keeper) as kept:
        assert kept.clear() == []
        kept.mount(resend=None)
        kept.count(4)
        if answered:
            kept.note_answer()
            # Another worker answers too.
            kept.note_answer()
        return socket_of(kept)


def socket_of(kept: Kept) -> str:
    return str(Path(f"/proc/self/fd/{kept.listener.fileno()}").readlink())


def is_locked(role: Role) -> bool:
    descriptor = os.open(role.directory / LOCK_NAME, os.O_RDWR)
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def test_the_next_one_goes_on_with_all_of_it(place: Place, keeper: Keeper) -> None:
    role = Role(place.config)
    before = begun(role, keeper)
    assert len(keeper.kept) == 3
    assert is_locked(role)
    with Kept(role, keeper) as kept:
        assert kept.connection is not None
        assert (kept.connection.answered, kept.outlives, kept.restarts) == (True, True, 5)
        assert socket_of(kept) == before
        assert kept.clear() == []
        assert place.mounted() == [str(role.fuse)]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{role.directory}/control.sock")
        kept.end()
    assert place.mounted() == []
    assert keeper.kept == {}
    assert not is_locked(role)


def test_a_connection_without_an_answer_is_not_kept(place: Place, keeper: Keeper) -> None:
    role = Role(place.config)
    begun(role, keeper, answered=False)
    assert keeper.kept == {}
    with Kept(role, keeper) as kept:
        assert (kept.connection, kept.restarts) == (None, 0)
        assert kept.clear() == [str(role.fuse)]


@pytest.mark.parametrize("how", ["unmounted", "no introduction", "another lock", "half an introduction"])
def test_what_cannot_be_gone_on_with_is_given_up(place: Place, keeper: Keeper, how: str) -> None:
    role = Role(place.config)
    begun(role, keeper)
    if how == "unmounted":
        unmount(role.fuse, lazy=True)
    elif how == "another lock":
        (role.directory / LOCK_NAME).unlink()
        (role.directory / LOCK_NAME).touch(mode=0o600)
    elif how == "no introduction":
        (role.directory / INIT_NAME).unlink()
    else:
        (role.directory / INIT_NAME).write_bytes(b"\0" * 10)
    with Kept(role, keeper) as kept:
        assert (kept.connection, kept.outlives, kept.restarts) == (None, False, 0)
        assert f"fuse.{role.directory.name}" not in keeper.kept
        assert kept.clear() == ([] if how == "unmounted" else [str(role.fuse)])
        assert is_locked(role)
        # And all is made anew.
        kept.mount(resend=None)
        kept.note_answer()
        assert len(keeper.kept) == 3
        kept.end()
    assert place.mounted() == []


def test_what_belongs_to_another_store_is_taken_away(place: Place, keeper: Keeper) -> None:
    role = Role(place.config)
    begun(role, keeper)
    other = Role(replace(place.config, store=f"file://{place.root}/other"))
    with Kept(other, keeper) as kept:
        assert (kept.connection, kept.restarts) == (None, 0)
        assert keeper.kept == {}
        assert kept.clear() == [str(role.fuse)]
        assert not is_locked(role)
        assert is_locked(other)
    assert place.mounted() == []


def test_what_was_deleted_is_made_again(place: Place, keeper: Keeper) -> None:
    role = Role(place.config)
    with Kept(role, keeper) as kept:
        kept.mount(resend=None)
        kept.note_answer()
        init = (role.directory / INIT_NAME).read_bytes()
        assert kept.is_whole()
        for name in ("control.sock", LOCK_NAME):
            (role.directory / name).unlink()
            assert not kept.is_whole()
            kept.make_again()
            assert kept.is_whole()
        (role.directory / INIT_NAME).unlink()
        (role.directory / "control.sock").unlink()
        kept.make_again()
        assert (role.directory / INIT_NAME).read_bytes() == init
        before = socket_of(kept)
        assert is_locked(role)
    # What is kept is what was made last.
    with Kept(role, keeper) as kept:
        assert socket_of(kept) == before
        assert kept.connection is not None
        kept.end()
    assert place.mounted() == []
