"""All commands with their arguments and options, from the command line itself."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import click

from reference.sections import table
from streamer.cli import cli
from streamer.commands.flags import SettingsCommand
from streamer.settings import ENV_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator


def markdown() -> str:
    """Return a section for each command, without groups, in alphabetical order."""
    return "\n".join(_section(name, command) for name, command in _commands("streamer", cli))


def _commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        if name == "streamer":
            yield name, command
        for each, below in sorted(command.commands.items()):
            yield from _commands(f"{name} {each}", below)
    else:
        yield name, command


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    told = [" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n")]
    parts = [f"## `{name}`\n", f"    {usage}\n", *(f"{part}\n" for part in told)]
    own, settings = _options(command)
    if own:
        parts.append(table(("option", "default", "meaning"), (_row(option, context) for option in own)))
    if settings:
        flags = ", ".join(f"`{option.opts[0]}`" for option in settings)
        parts.append(f"Takes these [settings](settings.md) as options: {flags}.\n")
    return "\n".join(parts)


def _options(command: click.Command) -> tuple[list[click.Option], list[click.Option]]:
    """Return the command's own options and those made from settings."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    if not isinstance(command, SettingsCommand):
        return options, []
    made = [each for each in options if f"({ENV_PREFIX}{(each.name or '').upper()})" in (each.help or "")]
    return [each for each in options if each not in made], made


def _row(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    name = ", ".join(f"`{each}`" for each in option.opts) + (f" `{value.strip()}`" if value else "")
    return name, "required" if option.required else _default(option, context), option.help or ""


def _default(option: click.Option, context: click.Context) -> str:
    default = option.get_default(context)
    return "" if option.is_flag or not option.show_default or default in (None, ()) else f"`{default}`"
