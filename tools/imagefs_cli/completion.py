"""``imagefs completion``: the script that makes a shell complete commands, options and refs."""

import click

from imagefs_cli.options import Invocation, command


@command("completion", short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(_invocation: Invocation, shell: str) -> None:
    r"""Print the completion script for SHELL.

    \b
    bash:  imagefs completion bash > /etc/bash_completion.d/imagefs
    zsh:   imagefs completion zsh > "${fpath[1]}/_imagefs"
    fish:  imagefs completion fish > ~/.config/fish/completions/imagefs.fish
    """
    from click.shell_completion import get_completion_class

    from imagefs_cli.main import cli

    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(made(cli, {}, "imagefs", "_IMAGEFS_COMPLETE").source())
