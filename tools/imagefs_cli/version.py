"""``imagefs version``."""

import click

from imagefs import __version__
from imagefs_cli import output
from imagefs_cli.options import Invocation, command


@command("version", short_help="Show the version.")
def version_command(invocation: Invocation) -> None:
    """Show the version of imagefs and of the formats that it writes."""
    from imagefs.format.manifest import MANIFEST_FORMAT
    from imagefs.store.base import STORE_FORMAT

    if invocation.wants_json:
        output.print_json({"version": __version__, "store_format": STORE_FORMAT, "manifest_format": MANIFEST_FORMAT})
    else:
        click.echo(f"imagefs {__version__} (store format {STORE_FORMAT}, manifest format {MANIFEST_FORMAT})")
