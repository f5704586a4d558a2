"""``imagefs completion``: the script that makes a shell complete commands, options, refs and sources.

The script of fish is click's. Bash and zsh have ones of their own: bash ends a word at each colon, which refs and sources have, and click's
script then completes the wrong word; click's for zsh completes nothing the second time, and puts a space behind what is to be gone on with.
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


# Loaded from a file of its name, the function is all of that file until the file has defined it.
_ZSH: Final = r"""#compdef imagefs

_imagefs() {
    local type value help
    local -a described whole begun
    local folders= files=
    while IFS= read -r type && IFS= read -r value && IFS= read -r help; do
        case $type in
            plain)
                if [[ $help != _ ]]; then
                    described+=("$value:$help")
                elif [[ $value == *[:/] ]]; then
                    begun+=("$value")
                else
                    whole+=("$value")
                fi
                ;;
            dir) folders=1 ;;
            file) files=1 ;;
        esac
    done < <(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) _IMAGEFS_COMPLETE=zsh_complete imagefs 2>/dev/null)
    (( $#described )) && _describe -V unsorted described -U
    (( $#begun )) && compadd -U -V unsorted -S '' -a begun
    (( $#whole )) && compadd -U -V unsorted -a whole
    [[ -n $folders ]] && _path_files -/
    [[ -n $files ]] && _path_files -f
    (( compstate[nmatches] ))
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _imagefs "$@"
else
    compdef _imagefs imagefs
fi
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
    if shell != "fish":
        click.echo(_BASH if shell == "bash" else _ZSH, nl=False)
        return
    from click.shell_completion import FishComplete

    from imagefs_cli.group import cli

    click.echo(FishComplete(cli, {}, "imagefs", "_IMAGEFS_COMPLETE").source())
