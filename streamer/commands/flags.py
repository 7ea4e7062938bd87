"""Flags made from the settings, so that each is described once, in :mod:`streamer.settings`."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from streamer.settings import COMMANDS_OF, ENV_PREFIX, Settings, load

if TYPE_CHECKING:
    from collections.abc import Collection

CONFIG_OPTION = click.Option(
    ["--config"],
    type=click.Path(path_type=Path),
    envvar=f"{ENV_PREFIX}CONFIG",
    help="TOML file with settings; flags and variables win over it.",
)


class SettingsCommand(click.Command):
    """A command whose flags are the settings of :data:`COMMANDS_OF`, but ``without`` some.

    It is called with ``settings``.
    """

    def __init__(self, *args: Any, uses: str, without: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names = tuple(name for name in COMMANDS_OF[uses] if name not in without)
        self.params += [CONFIG_OPTION, *(_option(name) for name in self._names)]

    def invoke(self, ctx: click.Context) -> Any:
        """Load the settings and hand them to the command instead of its raw flags."""
        flags = {name: ctx.params.pop(name) for name in self._names}
        if flags.get("kafka") is not None:
            flags["kafka"] = dict(flags["kafka"]) or None
        settings = load(flags, ctx.params.pop("config"))
        _configure_logs(settings)
        ctx.params["settings"] = settings
        return super().invoke(ctx)


def _option(name: str) -> click.Option:
    field = Settings.model_fields[name]
    default = "" if field.default_factory or field.default is None else f" [default: {field.default}]"
    flag = f"--{name.replace('_', '-')}"
    text = f"{field.description} ({ENV_PREFIX}{name.upper()}).{default}"
    if name == "kafka":
        return click.Option([flag], multiple=True, type=_Property(), metavar="PROPERTY=VALUE", help=text)
    choices = _choices(field.annotation)
    # The settings check every value alike, wherever it comes from; click's choices only serve completion.
    kind = _Open(choices) if choices else click.STRING
    return click.Option([flag], type=kind, metavar="|".join(choices) if choices else "TEXT", help=text)


def _choices(annotation: Any) -> tuple[str, ...]:
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    literal = next((each for each in (annotation, *options) if typing.get_origin(each) is Literal), None)
    return typing.get_args(literal) if literal else ()


class _Open(click.Choice[str]):
    """Completes like a choice, and leaves the check to the settings."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        return value


class _Property(click.ParamType[tuple[str, str]]):
    name = "property"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail("expected PROPERTY=VALUE", param, ctx)
        return key, text


def _configure_logs(settings: Settings) -> None:
    from streamer import logs  # noqa: PLC0415 - completion and --version start without it

    logs.configure(settings)
