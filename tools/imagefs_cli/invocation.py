"""One run of the command: what was said on its command line that is for all commands.

A mount's command has one too, so nothing is imported here that takes long to load.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from imagefs.config import Config
    from imagefs.settings import Settings
    from imagefs.store.base import ObjectStore


class Invocation:
    """Whether it was asked for JSON and for tracebacks, and the global options as they come: ``flags``, by setting name."""

    __slots__ = ("command_line", "flags", "verbose", "wants_json")

    def __init__(self, *, wants_json: bool = False, command_line: tuple[str, ...] = (), verbose: bool = False) -> None:
        """Know nothing else yet."""
        self.wants_json = wants_json
        self.command_line = command_line
        self.verbose = verbose
        self.flags: dict[str, Any] = {}

    def keep(self, name: str, value: "Any") -> None:
        """Take note of a global option; the last one of a name counts."""
        if name == "verbose":
            self.verbose = True
        else:
            self.flags[name] = value

    def settings(self) -> "Settings":
        """Find every setting, from flags, environment, file and defaults."""
        from imagefs.settings import load_settings

        return load_settings(self.flags)

    def config(self) -> "Config":
        """Build the configuration of them."""
        from imagefs.config import load_config

        return load_config(self.flags)

    def store(self, *, create: bool = False, private: bool = False) -> "ObjectStore":
        """Open the store; ``private``: what is written to a directory is for its owner alone."""
        from imagefs.store.opening import open_store

        return open_store(self.config().store, create=create, private=private)
