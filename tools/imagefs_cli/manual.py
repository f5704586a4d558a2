"""``imagefs man``: man pages and ``docs/cli.md``, both from the commands themselves."""

from collections.abc import Iterator
from pathlib import Path

import click

from imagefs import __version__
from imagefs_cli import output
from imagefs_cli.options import Invocation, command


@command("man", short_help="Write the man pages.")
@click.option("--out", "folder", type=click.Path(file_okay=False), default=".", show_default=True, help="The directory to write to.")
@click.option("--markdown", is_flag=True, help="Print the reference as Markdown instead.")
def man_command(invocation: Invocation, folder: str, markdown: bool) -> None:
    """Write a man page for each command."""
    if markdown:
        click.echo(reference(), nl=False)
        return
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    names = []
    for ctx in commands():
        name = ctx.command_path.replace(" ", "-")
        (target / f"{name}.1").write_text(page(ctx))
        names.append(f"{name}.1")
    if invocation.wants_json:
        output.print_json({"directory": str(target), "pages": names})


def commands() -> Iterator[click.Context]:
    """Yield a context for each command, groups before what is in them."""
    from imagefs_cli.main import cli

    pending = [click.Context(cli, info_name="imagefs", help_option_names=["-h", "--help"])]
    while pending:
        ctx = pending.pop(0)
        yield ctx
        if isinstance(ctx.command, click.Group):
            children = [ctx.command.get_command(ctx, name) for name in ctx.command.list_commands(ctx)]
            pending += [click.Context(child, info_name=child.name, parent=ctx) for child in children if child is not None]


def _usage(ctx: click.Context) -> str:
    return " ".join([ctx.command_path, *ctx.command.collect_usage_pieces(ctx)])


def _options(ctx: click.Context) -> list[tuple[str, str]]:
    return [record for param in ctx.command.get_params(ctx) if (record := param.get_help_record(ctx)) is not None]


def _paragraphs(ctx: click.Context) -> list[str]:
    text = (ctx.command.help or "").replace("\b\n", "")
    return [" ".join(line.strip() for line in part.splitlines()) for part in text.strip().split("\n\n")]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("\n.", "\n\\&.").replace("\n'", "\n\\&'")


def page(ctx: click.Context) -> str:
    """Return a command's man page."""
    name = ctx.command_path.replace(" ", "-")
    short = ctx.command.get_short_help_str(100).rstrip(".")
    lines = [f'.TH "{name.upper()}" 1 "" "imagefs {__version__}" "ImageFS"', ".SH NAME", f"{_escaped(name)} \\- {_escaped(short)}"]
    lines += [".SH SYNOPSIS", f".B {_escaped(_usage(ctx))}", ".SH DESCRIPTION"]
    for paragraph in _paragraphs(ctx):
        lines += [".PP", _escaped(paragraph)]
    lines.append(".SH OPTIONS")
    for option, text in _options(ctx):
        lines += [".TP", f"\\fB{_escaped(option)}\\fR", _escaped(text)]
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return ``docs/cli.md``."""
    lines = ["# The command line", "", "Made by `imagefs man --markdown`; a test compares it with the commands.", ""]
    lines += ["Exit codes are in [errors.md](errors.md).", ""]
    for ctx in commands():
        lines += [f"## `{ctx.command_path}`", "", f"    {_usage(ctx)}", ""]
        for paragraph in _paragraphs(ctx):
            lines += [paragraph, ""]
        own = [record for record in _options(ctx) if ctx.parent is None or record[0] not in _global_names()]
        if own:
            lines += ["| option | |", "|---|---|"]
            lines += [f"| `{option}` | {text.replace('|', chr(92) + '|')} |" for option, text in own]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _global_names() -> set[str]:
    ctx = next(iter(commands()))
    return {record[0] for record in _options(ctx) if record[0] != "-h, --help"} | {"--json"}
