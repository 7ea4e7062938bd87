"""Flags made from the settings, which are described only once, in :mod:`streamer.settings`."""

from __future__ import annotations

import datetime as dt
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from streamer.events import now
from streamer.settings import COMMANDS, ENV_PREFIX, Settings, described_default, load, names_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from streamer.settings import LogSettings

CONFIG = f"{__name__}.config"
"""The key under which a command's context keeps the path of its TOML file."""
CONFIG_OPTION = click.Option(
    ["--config"],
    type=click.Path(path_type=Path),
    envvar=f"{ENV_PREFIX}CONFIG",
    help="TOML file with settings; flags and environment variables override it.",
)


class SettingsCommand(click.Command):
    """A command whose flags are its settings in :data:`~streamer.settings.COMMANDS`, except those in ``without``.

    Its function is called with ``settings``.
    """

    def __init__(self, *args: Any, uses: str, without: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = COMMANDS[uses]
        self._names = tuple(name for name in names_of(self._settings) if name not in without)
        self.params += [CONFIG_OPTION, *(_option(name) for name in self._names)]

    def invoke(self, ctx: click.Context) -> Any:
        """Load the settings and pass them to the command instead of its raw flags."""
        flags = {name: ctx.params.pop(name) for name in self._names}
        if flags.get("kafka") is not None:
            flags["kafka"] = dict(flags["kafka"]) or None
        config = ctx.meta[CONFIG] = ctx.params.pop("config")
        settings = load(flags, config, command=self._settings)
        _configure_logs(settings)
        ctx.params["settings"] = settings
        return super().invoke(ctx)


def _option(name: str) -> click.Option:
    field = Settings.model_fields[name]
    default = f" [default: {text}]" if (text := described_default(name)) else ""
    flag = f"--{name.replace('_', '-')}"
    text = f"{field.description} ({ENV_PREFIX}{name.upper()}).{default}"
    if name == "kafka":
        return click.Option([flag], multiple=True, type=_Property(), metavar="PROPERTY=VALUE", help=text)
    kinds = _kinds(field.annotation)
    literals = [each for each in kinds if typing.get_origin(each) is Literal]
    choices = [str(choice) for literal in literals for choice in typing.get_args(literal)]
    # The settings validate every value, whatever its source; click's choices only serve completion.
    kind = _Open(choices) if choices else click.STRING
    metavar = "|".join(choices) if choices else next((_METAVARS[each] for each in kinds if each in _METAVARS), "TEXT")
    return click.Option([flag], type=kind, metavar=metavar, help=text)


_METAVARS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Return the possible types of a value, except None."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


class _Open(click.Choice[str]):
    """Completes like a choice, but leaves validation to the settings."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        return value


class _Property(click.ParamType[tuple[str, str]]):
    name = "property"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail("expected PROPERTY=VALUE", param, ctx)
        return key, text


def _configure_logs(settings: LogSettings) -> None:
    from streamer import logs  # noqa: PLC0415 - completion and --version start without it

    logs.configure(settings)


class Time(click.ParamType[dt.datetime]):
    """A time in RFC 3339, or an age such as 2h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        """Return the time that was given."""
        from streamer.kafka.dlq.letters import parse_time  # noqa: PLC0415

        try:
            return value if isinstance(value, dt.datetime) else parse_time(str(value), now())
        except ValueError as error:
            self.fail(str(error), param, ctx)
