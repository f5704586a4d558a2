"""A queue in which many who want something take turns: whoever wants a lot does not keep away who wants little.

Invariants: of one owner, first come, first served; of several who wait, none is served twice before each other one was served once. Pure:
no I/O, no clock, nothing awaited.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Turns(Generic[Item]):
    """The queue. Coming, leaving and being served cost the same however many wait."""

    __slots__ = ("_count", "_owners")

    def __init__(self) -> None:
        """Start empty."""
        # Not dicts: one that is only taken from at the front is searched from its beginning each time.
        self._owners: OrderedDict[Hashable, OrderedDict[Item, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """Count who waits."""
        return self._count

    def has_other(self, owner: Hashable) -> bool:
        """Say whether an item of anybody but ``owner`` is there."""
        return len(self._owners) > (owner in self._owners)

    def add(self, owner: Hashable, item: Item) -> None:
        """Put an item, which is not there yet, behind those of its owner."""
        self._owners.setdefault(owner, OrderedDict())[item] = None
        self._count += 1

    def remove(self, owner: Hashable, item: Item) -> None:
        """Take an item out that is there."""
        queue = self._owners[owner]
        del queue[item]
        self._count -= 1
        if not queue:
            del self._owners[owner]

    def pop(self) -> Item:
        """Take out the one whose turn it is; its owner's next turn comes after everybody else's."""
        owner, queue = next(iter(self._owners.items()))
        item, _ = queue.popitem(last=False)
        self._count -= 1
        if queue:
            self._owners.move_to_end(owner)
        else:
            del self._owners[owner]
        return item
