"""Snapshots of processes: what a program did before it could answer is done once, kept in the store, and restored anywhere.

The programming model is imported when it is asked for: the engines' keepers, which start with every sandbox, have no use for it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snapshotstore.app import App, enter, exit, method  # noqa: A004 # the name that the field knows

__all__ = ["App", "enter", "exit", "method"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from snapshotstore import app  # noqa: PLC0415 # see above

        return getattr(app, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
