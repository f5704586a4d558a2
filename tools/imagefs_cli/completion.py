"""``imagefs completion``: the script that makes a shell complete commands, options, refs and sources.

The scripts of zsh and fish are click's. Bash has one of its own: bash ends a word at each colon, which refs and sources have, and click's
script then completes the wrong word.
"""

from typing import Final

import click

from imagefs_cli.options import Invocation, command

_BASH: Final = r"""_imagefs_completion() {
    local line=${COMP_LINE:0:COMP_POINT} cword current prefix= type value
    local -a words
    read -ra words <<< "$line"
    cword=$(( ${#words[@]} - 1 ))
    [[ $line == *[[:space:]] ]] && cword=${#words[@]}
    current=${words[cword]-}
    # Readline replaces only what follows the last colon.
    [[ $current == *:* && $COMP_WORDBREAKS == *:* ]] && prefix=${current%"${current##*:}"}
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            plain)
                printf -v value %q "${value#"$prefix"}"
                COMPREPLY+=("$value")
                ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
        esac
    done < <(env COMP_WORDS="$line" COMP_CWORD="$cword" _IMAGEFS_COMPLETE=bash_complete "$1" 2>/dev/null)
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[:/] ]] && compopt -o nospace
    return 0
}

complete -F _imagefs_completion imagefs
"""


@command("completion", short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(_invocation: Invocation, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  imagefs completion bash > /etc/bash_completion.d/imagefs
    zsh:   imagefs completion zsh > "${fpath[1]}/_imagefs"
    fish:  imagefs completion fish > ~/.config/fish/completions/imagefs.fish
    """  # noqa: D301 # click takes the control character itself for "leave these lines as they are"
    if shell == "bash":
        click.echo(_BASH, nl=False)
        return
    from click.shell_completion import get_completion_class

    from imagefs_cli.group import cli

    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(made(cli, {}, "imagefs", "_IMAGEFS_COMPLETE").source())
