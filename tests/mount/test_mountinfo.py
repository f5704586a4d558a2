"""Parsing ``/proc/self/mountinfo``."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.mount import mountinfo
from imagefs.mount.mountinfo import mount_at, parse_mountinfo, read_images, read_mounts

_SAMPLE = rb"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
63 27 0:39 /trees/ab\040c /a\040b\134\011\012x ro,nosuid shared:2 propagate_from:1 - fuse.imagefs imagefs ro,user_id=0
64 27 0:40 / /a\040b\134\011\012x ro - tmpfs none rw

not a mount
"""


def test_fields_and_escapes() -> None:
    first, second, third = parse_mountinfo(_SAMPLE)
    assert (first.mount_id, first.parent_id, first.device, first.root, first.mountpoint) == (36, 35, "98:0", "/mnt1", "/mnt2")
    assert (first.fstype, first.source, first.options) == ("ext3", "/dev/root", frozenset({"rw", "noatime"}))
    assert (second.root, second.mountpoint, second.fstype) == ("/trees/ab c", "/a b\\\t\nx", "fuse.imagefs")
    assert mount_at("/a b\\\t\nx", [first, second, third]) == third
    assert mount_at("/a", [first, second, third]) is None


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_any_name_comes_back(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes((byte,)) for byte in name)
    (entry,) = parse_mountinfo(b"1 2 0:1 / /" + escaped + b" rw - tmpfs none rw\n")
    assert os.fsencode(entry.mountpoint) == b"/" + name


@given(st.binary())
def test_garbage_is_left_out(data: bytes) -> None:
    parse_mountinfo(data)


def test_this_machine_has_mounts() -> None:
    assert mount_at("/proc", read_mounts()) is not None
    assert mount_at("/proc") == mount_at("/proc", read_mounts())


@given(st.lists(st.sampled_from(["/a", "/a b", "/a\\040b", "/a\tb", "/a/b", "/a\n", "/\udcff", "/"]), max_size=8))
def test_a_place_is_found_without_parsing_the_others(places: list[str]) -> None:
    """What is under ``/a`` is not ``/a``, a root of that name is no mountpoint, and the last of several is the one that is seen."""
    lines = []
    for number, place in enumerate(places):
        name = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes((byte,)) for byte in os.fsencode(place))
        lines.append(b"%d 1 0:1 /a %s rw - fuse.imagefs imagefs rw\n" % (number, name))
        lines.append(b"99 1 0:1 %s /else rw - tmpfs none rw\n" % name)
    with pytest.MonkeyPatch.context() as patch, tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(lines))
        file.flush()
        patch.setattr(mountinfo, "_PATH", Path(file.name))
        for place in [*places, "/none"]:
            assert mount_at(place) == mount_at(place, read_mounts())
        assert [entry.mountpoint for entry in read_images()] == places
