"""The layers of an overlay, given to ``fsconfig(2)`` in the best way that the kernel has.

By descriptor (Linux 6.13) no name is looked up twice, none is too long, and no byte in one is special. One string a layer (6.8) takes names
as they are, but no longer than ``VALUE_MAX``. One string for all (6.5) escapes what separates them. A name that is too long goes as
``/proc/self/fd/N``, which is shorter and leads to the same place: only ``/proc/self/mountinfo`` tells less then.
"""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from imagefs import syscalls
from imagefs.mount.fscontext import VALUE_MAX, messages

_SPECIAL: Final = re.compile(rb"[\\:,]")


class Layer(NamedTuple):
    """A directory, and a descriptor of it that is not of ``O_PATH``: those are refused before Linux 6.15."""

    path: Path
    descriptor: int


class Style(Enum):
    """How layers are given, the newest first."""

    DESCRIPTOR = "by descriptor"
    STRING = "one string a layer"
    LOWERDIR = "one string for all"


STYLES: Final = tuple(Style)


@contextmanager
def opened(path: Path) -> Iterator[Layer]:
    """Give a directory as a layer. ``OSError``. Blocks if its file system does: that of FUSE is asked by this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Layer(path, descriptor)
    finally:
        os.close(descriptor)


def give_layers(context: int, lower: Layer, data: Sequence[Layer], writable: Sequence[Layer], styles: Sequence[Style] = STYLES) -> None:
    """Give an overlay its lower layer, its data-only layers, and upper and work directory, if any. ``OSError``.

    The first of ``styles`` that the kernel knows is taken: what it does not know is ``EINVAL`` at the first layer.
    """
    for number, style in enumerate(styles, 1):
        try:
            _give_lower(context, lower, data, style)
        except OSError as error:
            if error.errno != errno.EINVAL or number == len(styles):
                raise
            messages(context)  # They are about the style.
            continue
        for key, layer in zip(("upperdir", "workdir"), writable, strict=False):
            _give(context, key, layer, style, escape=True)
        return


def _give_lower(context: int, lower: Layer, data: Sequence[Layer], style: Style) -> None:
    if style is not Style.LOWERDIR:
        _give(context, "lowerdir+", lower, style)
        for layer in data:
            _give(context, "datadir+", layer, style)
        return
    value = b"::".join(_escaped(layer) for layer in (lower, *data))
    if len(value) > VALUE_MAX:
        value = b"::".join(_short(layer) for layer in (lower, *data))
    syscalls.fsconfig_string(context, "lowerdir", value)


def _give(context: int, key: str, layer: Layer, style: Style, *, escape: bool = False) -> None:
    """Give one directory. Upper and work directory are unescaped by the kernel, single lower ones are not."""
    if style is Style.DESCRIPTOR:
        syscalls.fsconfig_descriptor(context, key, layer.descriptor)
        return
    value = _escaped(layer) if escape else os.fsencode(layer.path)
    syscalls.fsconfig_string(context, key, value if len(value) <= VALUE_MAX else _short(layer))


def _escaped(layer: Layer) -> bytes:
    return _SPECIAL.sub(rb"\\\g<0>", os.fsencode(layer.path))


def _short(layer: Layer) -> bytes:
    return b"/proc/self/fd/%d" % layer.descriptor
