"""The programming model: a class whose slow beginning is done once, frozen, and restored for each replica.

::

    app = App("service")

    @app.cls(image="torch:1", enable_memory_snapshot=True)
    class Service:
        @enter(snap=True)     # once, before the snapshot
        def load(self): ...

        @enter(snap=False)    # after every restore, and on a cold start
        def connect(self): ...

        @method()
        def ask(self, x): ...

The same module is imported by who calls and by the agent in the sandbox, which runs the image's own Python. So this file is of the standard
library alone, and of Python 3.8; a test holds that. Nothing here starts anything.

What does not live here: what happens in the sandbox (``snapshotstore.agent``).
"""

from __future__ import annotations

from typing import Any, Callable, Iterator, NamedTuple, TypeVar  # noqa: UP035 # of Python 3.8

ENTER_SECONDS = 600.0
EXIT_SECONDS = 10.0
HOOK_SECONDS = 10.0
"""How long a hook may take where nothing else is said."""

_F = TypeVar("_F", bound=Callable[..., Any])
_C = TypeVar("_C", bound=type)

_HOOK = "__snapshotstore_hook__"
_SERVICE = "__snapshotstore_service__"


class Hook(NamedTuple):
    """When a method runs by itself: ``kind`` is ``enter`` or ``exit``; ``snap``: before the snapshot; ``timeout`` is in seconds."""

    kind: str
    snap: bool
    timeout: float


class Settings(NamedTuple):
    """What a service is: where it runs, and whether its beginning is frozen.

    ``image`` is a ref; ``environment`` names variables that the program is given when it starts, and which therefore are in a snapshot;
    ``secrets`` names those that it is given after every restore, and that never are. With ``fixed_layout`` each start has equal addresses
    and hash seeds, so that its snapshots share their pages; without, each has its own, as is usual. ``preload`` names modules that are
    imported before the service's own, in this order: what they put into memory lies where it lay, also when a line of the service changes.
    """

    app: str
    image: str
    enable_memory_snapshot: bool
    environment: tuple[str, ...]
    secrets: tuple[str, ...]
    fixed_layout: bool = True
    preload: tuple[str, ...] = ()


class App:
    """A program of one or more services, and what is to be done around a snapshot of any of them."""

    def __init__(self, name: str) -> None:
        """``name`` is the lineage's: snapshots of one app share their pages."""
        if not name or not all(char.isalnum() or char in "-_." for char in name):
            raise ValueError(f"not the name of an app: {name!r}: letters, digits, '-', '_' and '.'")
        self.name = name
        self.before: list[tuple[Callable[[], Any], float]] = []
        self.after: list[tuple[Callable[[], Any], float]] = []

    def cls(
        self,
        *,
        image: str,
        enable_memory_snapshot: bool = False,
        environment: tuple[str, ...] = (),
        secrets: tuple[str, ...] = (),
        fixed_layout: bool = True,
        preload: tuple[str, ...] = (),
    ) -> Callable[[_C], _C]:
        """Make a class a service. See :class:`Settings`."""
        settings = Settings(self.name, image, enable_memory_snapshot, tuple(environment), tuple(secrets), fixed_layout, tuple(preload))

        def mark(kind: _C) -> _C:
            setattr(kind, _SERVICE, (self, settings))
            return kind

        return mark

    def before_snapshot(self, *, timeout: float = HOOK_SECONDS) -> Callable[[_F], _F]:
        """Have a function called just before the program is frozen: the one that was given last first."""

        def mark(function: _F) -> _F:
            self.before.append((function, timeout))
            return function

        return mark

    def after_restore(self, *, timeout: float = HOOK_SECONDS) -> Callable[[_F], _F]:
        """Have a function called after each restore, before ``enter(snap=False)``: the one that was given first first."""

        def mark(function: _F) -> _F:
            self.after.append((function, timeout))
            return function

        return mark


def enter(*, snap: bool, timeout: float = ENTER_SECONDS) -> Callable[[_F], _F]:
    """Have a method called when the program starts: before the snapshot with ``snap``, else after every restore and on a cold start."""
    return _hook(Hook("enter", snap, timeout))


def exit(*, timeout: float = EXIT_SECONDS) -> Callable[[_F], _F]:  # noqa: A001 # the name that the field knows
    """Have a method called when the replica is told to end."""
    return _hook(Hook("exit", False, timeout))


def _hook(hook: Hook) -> Callable[[_F], _F]:
    def mark(function: _F) -> _F:
        setattr(function, _HOOK, hook)
        return function

    return mark


class Method:
    """A method that can be called from elsewhere. Of an object it is the method as it was written."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """``function`` is the method as it was written."""
        self.function = function
        self.__doc__ = function.__doc__
        self.name = function.__name__

    def __set_name__(self, owner: type, name: str) -> None:
        """Take the name under which it is known."""
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Return the function, bound to an object; this of a class."""
        return self if instance is None else BoundMethod(self, instance)


class BoundMethod:
    """A method of an object: called, it runs here; :meth:`remote` runs it in a replica."""

    def __init__(self, method: Method, instance: Any) -> None:
        """``instance`` is of the class that has the method."""
        self._method = method
        self._instance = instance
        self.__doc__ = method.__doc__

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run it in this process."""
        return self._method.function(self._instance, *args, **named)

    def remote(self, *args: Any, **named: Any) -> Any:
        """Run it in a replica of the class, restored from a snapshot where one fits; return what it answers.

        Arguments and answer are what JSON has. Raises ``ProgramError`` for what the method raises, and others of ``imagefs.errors``.
        """
        from snapshotstore.runner import remote  # noqa: PLC0415 # of the host alone: not there in a sandbox

        return remote.call(type(self._instance), self._method.name, args, named)


def method() -> Callable[[Callable[..., Any]], Method]:
    """Let a method be called from elsewhere. Its arguments and its answer are what JSON can hold."""
    return Method


def settings_of(kind: type) -> tuple[App, Settings]:
    """Return the app and the settings of a service. ``TypeError`` for a class that is none."""
    found = getattr(kind, _SERVICE, None)
    if found is None:
        raise TypeError(f"{kind.__module__}:{kind.__qualname__} is no service: it has no @app.cls(image=...)")
    app, settings = found
    return app, settings


def hooks_of(kind: type, *, on: str, snap: bool = False) -> Iterator[tuple[str, float]]:
    """Yield the names and timeouts of the methods that run by themselves, those of base classes first, in the order of their definition."""
    seen = set()
    for owner in reversed(kind.__mro__):
        for name, found in vars(owner).items():
            hook = getattr(found, _HOOK, None)
            if hook is not None and (hook.kind, hook.snap) == (on, snap) and name not in seen:
                seen.add(name)
                yield name, hook.timeout


def methods_of(kind: type) -> dict[str, Method]:
    """Return the methods that can be called from elsewhere, by name."""
    return {name: found for owner in reversed(kind.__mro__) for name, found in vars(owner).items() if isinstance(found, Method)}
