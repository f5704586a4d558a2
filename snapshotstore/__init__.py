"""Snapshots of processes: what a program did before it could answer is done once, kept in the store, and restored anywhere."""

from snapshotstore.app import App, enter, exit, method  # noqa: A004 # the name that the field knows

__all__ = ["App", "enter", "exit", "method"]
