"""What upper layers hide: so that content which nobody can see is not stored.

Layers are read from the top down, and a :class:`MaskFilter` collects what each does to the layers below it. It is an optimisation and
leans to one side: a path that it calls hidden may turn out to be visible (reached through a symbolic link, or as the target of a hard link
in its own layer), which :func:`imagefs.convert.flatten.missing_content` finds; a path that it does not call hidden is merely stored in
vain. It compares paths as written and resolves nothing.

One thread owns it. Cost: nothing while no layer was added, then one set lookup a path and one walk up a directory's parents.
"""

from typing import Final

from imagefs.convert.entry import Entry, Kind

_MEMO_MAX: Final = 1 << 16


class MaskFilter:
    """Collects layers from the top down: :meth:`begin_layer`, then :meth:`add` for each of its entries, once that layer was read."""

    def __init__(self) -> None:
        """Hide nothing."""
        self._replaced: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._directories: set[bytes] = set()
        self._linked: set[bytes] = set()
        self._below: dict[bytes, bool] = {}

    def begin_layer(self, index: int) -> None:
        """Say that the entries that :meth:`add` gets from now on are those of layer ``index``, below all that were added."""
        del index  # the order of calls says it all

    def add(self, entry: Entry) -> None:
        """Hide from the layers that are read after this what ``entry`` hides from the layers below its own."""
        kind = entry.kind
        path = entry.path
        if self._below:
            self._below.clear()
        if kind is Kind.DIR:
            self._directories.add(path)
        elif kind is Kind.OPAQUE:
            self._opaque.add(path)
        else:
            self._replaced.add(path)
            if kind is Kind.HARDLINK:
                self._linked.add(entry.link)

    def hides(self, path: bytes, kind: Kind = Kind.FILE) -> bool:
        """Say whether a layer added so far hides ``path`` of the next layer down, which is of ``kind`` there."""
        if path in self._linked:
            return False
        if path in self._replaced or (kind is not Kind.DIR and path in self._directories):
            return True
        if not (self._replaced or self._opaque) or not path:
            return False
        parent = path.rpartition(b"/")[0]
        below = self._below.get(parent)
        if below is None:
            below = self._hides_below(parent)
            if len(self._below) >= _MEMO_MAX:
                self._below.clear()
            self._below[parent] = below
        return below

    def _hides_below(self, path: bytes) -> bool:
        """Say whether everything under directory ``path`` is hidden."""
        replaced, opaque, memo = self._replaced, self._opaque, self._below
        while path not in replaced and path not in opaque:
            if not path:
                return False
            path = path.rpartition(b"/")[0]
            known = memo.get(path)
            if known is not None:
                return known
        return True
