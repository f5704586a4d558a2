"""``imagefs daemon``: run, show and stop the daemon."""

import os
from typing import Any

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command


@click.group("daemon", short_help="Run, show or stop the daemon.", context_settings={"help_option_names": ["-h", "--help"]})
def daemon_command() -> None:
    """Run, show or stop the daemon. `imagefs mount` starts one by itself where none runs; that one ends with its last mount."""


def _run(invocation: Invocation) -> None:
    """Run the daemon of this store and cache in the foreground, until SIGTERM or `imagefs daemon stop`.

    It stays when the last mount goes.
    """
    from imagefs.daemon.worker import Role, run_daemon
    from imagefs.errors import AccessError

    if os.geteuid() != 0:
        raise AccessError("a daemon for all mounts needs root", hint="without root, `imagefs mount` starts one for each mount")
    run_daemon(Role(invocation.config(), log_to_file=False), lambda: output.say("imagefs daemon: ready"))


def _status(invocation: Invocation) -> None:
    """Show the daemon of this store and cache, and what it has mounted."""
    from imagefs.daemon import client

    config = invocation.config()
    if os.geteuid() == 0:
        found = [client.status(config)]
    else:
        found = [d for d in client.daemons(config) if d["store"] == config.store and d["cache"] == str(config.cache)] or [
            client.status(config)
        ]
    for daemon in found:
        daemon.setdefault("worker_pid", daemon["pid"])
    if invocation.wants_json:
        output.print_json(found[0] | {"mounts": [mount for daemon in found for mount in daemon["mounts"]]})
        return
    for daemon in found:
        _print(daemon)


def _print(daemon: dict[str, Any]) -> None:
    rows: list[tuple[str, object]] = [
        ("pid", daemon["pid"]),
        ("version", daemon["version"]),
        ("store", daemon["store"]),
        ("cache", daemon["cache"]),
        ("memory", output.size(daemon["rss_bytes"])),
        ("ends with its last mount", "yes" if daemon["auto_stop"] else "no"),
    ]
    rows += [("mount", f"{mount['mountpoint']}  {mount['ref'] or mount['manifest']}  {mount['mode']}") for mount in daemon["mounts"]]
    output.pairs(rows)


def _stop(invocation: Invocation) -> None:
    """Unmount everything and end the daemon of this store and cache."""
    from imagefs.daemon import client

    config = invocation.config()
    if os.geteuid() == 0:
        result = client.stop(config)
    else:
        result = {"mounts": 0}
        for daemon in client.daemons(config):
            for mount in daemon["mounts"]:
                result["mounts"] += 1
                client.umount(config, mount["mountpoint"])
    if invocation.wants_json:
        output.print_json(result)


for _name, _function in (("run", _run), ("status", _status), ("stop", _stop)):
    daemon_command.add_command(command(_name)(_function))
