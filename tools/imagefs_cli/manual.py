"""``imagefs man``: man pages, ``docs/cli.md`` and ``docs/errors.md``, all from the commands and the error classes themselves."""

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click

from imagefs import __version__
from imagefs_cli import failures, output
from imagefs_cli.options import Invocation, command

SETTINGS: Final[Mapping[str, str]] = {
    "store": "the store: `file:///DIR`, or a directory",
    "cache": "the directory where the host keeps indexes and content",
    "runtime": "the directory with sockets and the mount table",
    "ram_bytes": "bound of the RAM tier, such as `512MiB`",
    "cache_bytes": "bound of the SSD tier, such as `200GiB`; 0: as much as there is room",
    "cache_floor": "what the SSD tier leaves free on its file system; by default a twentieth of it, 10 GiB at most",
    "scrub_days": "days within which all of the SSD tier is read and verified, in the background; 0: never",
    "complete_bytes_per_second": "what of mounted images is not here comes in the background, this much a second, such as `10MiB`; 0: not",
    "store_deadline": "seconds after which a read stops waiting for the store",
    "mode": "how images are mounted: `kernel`, `fuse`, or `auto`: kernel mode where that works",
    "log_level": "the least severe event that the daemon logs",
    "metrics_listen": "an address of the loopback where Prometheus may ask, such as `127.0.0.1:9464`; by default none",
}
"""What each setting of ``imagefs.config`` is; a test compares the names."""

EXITS: Final[Mapping[int, str]] = {
    failures.EXIT_BUG: "an unexpected error: a bug in imagefs; `-v` shows the traceback",
    failures.EXIT_LEFT: "a daemon left its mounts to the next one, which its service manager is to start",
    failures.EXIT_INTERRUPTED: "interrupted (Ctrl-C)",
    failures.EXIT_PIPE: "the reader of standard output went away",
}
"""Exit codes that belong to no class of error."""

_CONFIGURATION: Final = (
    "A flag wins over the environment, which wins over the TOML file, which wins over the default. `--config` or `IMAGEFS_CONFIG` names",
    "the file; otherwise it is `/etc/imagefs/config.toml`, and without root `~/.config/imagefs/config.toml` if there is one. Without root",
    "the directories are those of the XDG specification.",
)
_ERRORS: Final = (
    "Each class of failure has an exit code of its own; with `--json` the class is `error.type`. A FUSE reader gets the errno.",
    "",
    "Made by `imagefs man --markdown --out docs` from `imagefs/errors.py`; a test compares them.",
)


@command("man", short_help="Write the man pages.")
@click.option("--out", "folder", default=".", show_default=True, metavar="DIR", help="The directory to write to.")
@click.option("--markdown", is_flag=True, help="Write cli.md and errors.md instead.")
def man_command(invocation: Invocation, folder: str, markdown: bool) -> None:
    """Write a man page for each command."""
    from imagefs.errors import AccessError

    pages = documents() if markdown else {f"{_name(ctx)}.1": page(ctx) for ctx in commands()}
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (target / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise AccessError(f"cannot write to {folder}: {error.strerror}", hint="--out DIR names another directory") from error
    if invocation.wants_json:
        output.print_json({"directory": str(target), "pages": list(pages)})


def documents() -> dict[str, str]:
    """Return the pages below ``docs/`` that are made here, by file name."""
    return {"cli.md": reference(), "errors.md": errors_page()}


def commands() -> Iterator[click.Context]:
    """Yield a context for each command, groups before what is in them."""
    from imagefs_cli.group import cli

    pending = [click.Context(cli, info_name="imagefs", help_option_names=["-h", "--help"])]
    while pending:
        ctx = pending.pop(0)
        yield ctx
        pending += _children(ctx)


def _children(ctx: click.Context) -> list[click.Context]:
    if not isinstance(ctx.command, click.Group):
        return []
    found = [ctx.command.get_command(ctx, name) for name in ctx.command.list_commands(ctx)]
    return [click.Context(child, info_name=child.name, parent=ctx) for child in found if child is not None]


def _usage(ctx: click.Context) -> str:
    return " ".join([ctx.command_path, *ctx.command.collect_usage_pieces(ctx)])


def _options(ctx: click.Context) -> list[tuple[str, str]]:
    return [record for param in ctx.command.get_params(ctx) if (record := param.get_help_record(ctx)) is not None]


def _name(ctx: click.Context) -> str:
    return ctx.command_path.replace(" ", "-")


def _paragraphs(ctx: click.Context) -> list[list[str]]:
    """Return a command's help by paragraphs: of one line each, but for those marked to be left as they are."""
    found = []
    for part in (ctx.command.help or "").strip().split("\n\n"):
        lines = [line.strip() for line in part.splitlines()]
        found.append(lines[1:] if lines[:1] == ["\b"] else [" ".join(lines)])
    return found


def _error_rows() -> list[tuple[int, str, str, str]]:
    """Return exit code, name, errno and meaning of each class of error, by exit code."""
    from imagefs import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ImageFSError)]
    # ENOTSUP and EOPNOTSUPP are one number; Python's table has the latter.
    names = {**errno.errorcode, errno.ENOTSUP: "ENOTSUP"}
    rows = [(kind.exit_code, kind.__name__, names[kind.errno], (kind.__doc__ or "").splitlines()[0]) for kind in kinds]
    return sorted(rows)


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    # A line that begins with a dot or a quote would be a request.
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.split("\n"))


def page(ctx: click.Context) -> str:
    """Return a command's man page."""
    short = ctx.command.get_short_help_str(100).rstrip(".")
    lines = [f'.TH "{_name(ctx).upper()}" 1 "" "imagefs {__version__}" "ImageFS"']
    lines += [".SH NAME", f"{_escaped(_name(ctx))} \\- {_escaped(short)}"]
    lines += [".SH SYNOPSIS", f".B {_escaped(_usage(ctx))}", ".SH DESCRIPTION"]
    for paragraph in _paragraphs(ctx):
        lines += [".PP", "\n.br\n".join(_escaped(line) for line in paragraph)]
    lines.append(".SH OPTIONS")
    for option, text in _options(ctx):
        lines += [".TP", f"\\fB{_escaped(option)}\\fR", _escaped(text)]
    if isinstance(ctx.command, click.Group):
        lines.append(".SH COMMANDS")
        for child in _children(ctx):
            lines += [".TP", f"\\fB{_escaped(_name(child))}\\fR(1)", _escaped(child.command.get_short_help_str(100))]
    lines += [".SH EXIT STATUS", ".TP", ".B 0", "Done."]
    for code, kind, _, text in _error_rows():
        lines += [".TP", f".B {code}", _escaped(f"{kind}: {text}")]
    for code, text in EXITS.items():
        lines += [".TP", f".B {code}", _escaped(text.replace("`", "") + ".")]
    lines.append(".SH ENVIRONMENT")
    for setting, variable in _variables():
        lines += [".TP", f".B {variable}", _escaped(setting.replace("`", "") + ".")]
    if ctx.parent is not None:
        lines += [".SH SEE ALSO", f".BR {_escaped(_name(ctx.parent))} (1)"]
    return "\n".join(lines) + "\n"


def _variables() -> list[tuple[str, str]]:
    from imagefs.config import ENVIRONMENT

    return [(SETTINGS[name], variable) for name, variable in ENVIRONMENT.items()] + [("the TOML configuration file", "IMAGEFS_CONFIG")]


def reference() -> str:
    """Return ``docs/cli.md``."""
    from imagefs.config import ENVIRONMENT

    lines = ["# The command line", "", "Made by `imagefs man --markdown --out docs`; a test compares it with the commands.", ""]
    lines += ["Exit codes are in [errors.md](errors.md).", ""]
    for ctx in commands():
        lines += [f"## `{ctx.command_path}`", "", f"    {_usage(ctx)}", ""]
        for paragraph in _paragraphs(ctx):
            lines += [f"    {line}" for line in paragraph] if len(paragraph) > 1 else paragraph
            lines.append("")
        own = [record for record in _options(ctx) if ctx.parent is None or record[0] not in _global_names()]
        if own:
            lines += ["| option | |", "|---|---|"]
            lines += [f"| `{_cell(option)}` | {_cell(text)} |" for option, text in own]
            lines.append("")
    lines += ["## Configuration", "", *_CONFIGURATION, "", "| key | variable | flag | default (root) | |", "|---|---|---|---|---|"]
    flags = _global_names()
    for name, variable in ENVIRONMENT.items():
        flag = "--" + name.replace("_", "-")
        shown = f"`{flag}`" if any(known.split()[0] == flag for known in flags) else ""
        lines.append(f"| `{name}` | `{variable}` | {shown} | {_default(name)} | {SETTINGS[name]} |")
    return "\n".join(lines) + "\n"


def _default(name: str) -> str:
    from imagefs.config import Config, root_defaults

    value = root_defaults().get(name, Config.__dataclass_fields__[name].default)
    return f"`{value}`"


def errors_page() -> str:
    """Return ``docs/errors.md``."""
    lines = ["# Errors and exit codes", "", *_ERRORS, ""]
    lines += ["| exit code | class | errno | when |", "|---|---|---|---|", "| 0 | | | done |"]
    lines += [f"| {code} | `{kind}` | {number} | {text} |" for code, kind, number, text in _error_rows()]
    lines += [f"| {code} | | | {text} |" for code, text in EXITS.items()]
    lines += ["", "`imagefs doctor` ends with 1 if this host lacks something that this version needs, `imagefs diff` if the images differ."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _global_names() -> set[str]:
    ctx = next(iter(commands()))
    return {record[0] for record in _options(ctx) if record[0] != "-h, --help"} | {"--json"}
