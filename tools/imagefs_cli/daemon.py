"""``imagefs daemon``: run, show, renew and stop the daemon."""

import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from imagefs_cli import output
from imagefs_cli.failures import EXIT_LEFT
from imagefs_cli.options import GLOBAL_OPTIONS, Invocation, command

if TYPE_CHECKING:
    from imagefs.config import Config


@click.group(
    "daemon",
    short_help="Run, show or stop the daemon.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def daemon_command(ctx: click.Context) -> int | None:
    """Run, show, renew or stop the daemon; run it, if no command is given.

    `imagefs mount` starts one by itself where none runs; that one ends with its last mount.
    """
    return _run(ctx.ensure_object(Invocation)) if ctx.invoked_subcommand is None else None


daemon_command.params += GLOBAL_OPTIONS()


def _run(invocation: Invocation) -> int:
    """Run the daemon of this store and cache in the foreground, until SIGTERM or `imagefs daemon stop`.

    It stays when the last mount goes. SIGHUP does what `imagefs daemon reload` does. At SIGUSR2 it leaves the mounts to the next
    supervisor: the one that systemd starts, where that keeps descriptors for it, and elsewhere itself, begun anew.
    """
    from imagefs.config import manager_settings
    from imagefs.daemon.instance import Role
    from imagefs.daemon.notify import ServiceManager
    from imagefs.daemon.supervisor import run_daemon
    from imagefs.errors import AccessError

    if os.geteuid() != 0:
        raise AccessError("a daemon for all mounts needs root", hint="without root, `imagefs mount` starts one for each mount")
    role = Role(invocation.config(), log_to_file=False)
    manager, again = ServiceManager(manager_settings()), (sys.executable, *sys.orig_argv[1:])
    left = run_daemon(role, lambda: output.say("imagefs daemon: ready"), manager=manager, again=again)
    return EXIT_LEFT if left else 0


def _status(invocation: Invocation) -> None:
    """Show the daemon of this store and cache, and what it has mounted."""
    from imagefs.daemon import client

    config = invocation.config()
    found = (_own(config) if os.geteuid() != 0 else []) or [client.status(config)]
    if invocation.wants_json:
        output.print_json(found[0] | {"mounts": [mount for daemon in found for mount in daemon["mounts"]]})
        return
    for daemon in found:
        _print(daemon)


def _own(config: "Config") -> list[dict[str, Any]]:
    """Return the status of each daemon of this store and cache: without root there is one for each mount."""
    from imagefs.daemon import client

    return [daemon for daemon in client.daemons(config) if daemon["store"] == config.store and daemon["cache"] == str(config.cache)]


def _print(daemon: dict[str, Any]) -> None:
    rows: list[tuple[str, object]] = [
        ("pid", daemon["pid"]),
        ("serving process", daemon["worker_pid"] or "none, for a moment"),
        ("replaced", f"{daemon['worker_restarts']} times"),
        ("version", daemon["version"]),
        ("store", daemon["store"]),
        ("cache", daemon["cache"]),
        ("log and sockets", daemon.get("directory", "not told")),
        ("memory", output.size(daemon["rss_bytes"])),
        ("ends with its last mount", "yes" if daemon["auto_stop"] else "no"),
    ]
    rows += [("mount", f"{mount['mountpoint']}  {mount['ref'] or mount['manifest']}  {mount['mode']}") for mount in daemon["mounts"]]
    if crash := daemon["crash"]:
        at = datetime.fromtimestamp(crash["at"]).astimezone().isoformat(timespec="seconds")
        rows.append(("last crash", f"{at}  process {crash['worker_pid']}: {crash['how']}{_because(crash)}"))
    output.pairs(rows)


def _because(crash: dict[str, Any]) -> str:
    """Say what is known beyond how it ended; ``--json`` has the end of the log too."""
    return f": {crash['error']}" if crash["error"] else ""


@click.option("--supervisor", is_flag=True, help="Replace the supervisor too, which takes half a second instead of a tenth.")
def _reload(invocation: Invocation, *, supervisor: bool) -> None:
    """Have a new process serve the mounts, with the code that is on disk now. Programs that read meanwhile wait a moment.

    If the new one cannot start, the old one goes on, and this fails.
    """
    from imagefs.daemon import client
    from imagefs.errors import DaemonError

    config = invocation.config()
    if supervisor:
        # It is what is to run: if it cannot even be loaded, nothing is given up for it.
        import imagefs.daemon.supervisor  # noqa: F401
    if os.geteuid() == 0:
        result = client.reload(config, supervisor=supervisor)
    else:
        mounts = [mount["mountpoint"] for daemon in _own(config) for mount in daemon["mounts"]]
        if not mounts:
            raise DaemonError("no daemon is running for this store and cache", hint="`imagefs mount` starts one")
        result = [client.reload(config, at=mountpoint, supervisor=supervisor) for mountpoint in mounts][-1]
    if invocation.wants_json:
        output.print_json(result)


def _stop(invocation: Invocation) -> None:
    """Unmount everything and end the daemon of this store and cache."""
    from imagefs.daemon import client

    config = invocation.config()
    if os.geteuid() == 0:
        result = client.stop(config)
    else:
        result = {"mounts": 0}
        for daemon in _own(config):
            for mount in daemon["mounts"]:
                result["mounts"] += 1
                client.umount(config, mount["mountpoint"])
    if invocation.wants_json:
        output.print_json(result)


for _name, _function in (("run", _run), ("status", _status), ("reload", _reload), ("stop", _stop)):
    daemon_command.add_command(command(_name)(_function))
