"""What comes from outside by the command line, the environment and the configuration file, and what Python prints."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import click
import pytest
import structlog

from streamer import cli, logs
from streamer.settings import ENV_PREFIX, Settings, load
from streamer.terminal import LogHandler, take_over_stderr
from tests.support.escapes import FORGED, forged, hostile, raw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTILE = hostile(500)
FOR_SYSTEM_CALLS = [text for text in hostile(500, surrogates=False) if "\0" not in text]
"""Texts that an argument, a variable or a file's name can have."""


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the process's own ways to print as they were; let no command do what it is for."""
    for where, name in (
        (sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"), (logging, "lastResort"),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, getattr(where, name))
    root = logging.getLogger()
    before = root.handlers, root.level
    monkeypatch.setattr(click.Context, "invoke", lambda *_, **__: None)
    monkeypatch.setenv("COLUMNS", "150")
    yield
    root.handlers, root.level = before
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def main(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "argv", ["streamer", *arguments])
    try:
        cli.main()
    except SystemExit:
        pass
    except Exception:  # noqa: BLE001 - shown as an interpreter shows it
        sys.excepthook(*sys.exc_info())


def commands(
    group: click.Group = cli.cli, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*before, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))


def check(capsys: pytest.CaptureFixture[str], what: object) -> int:
    """Show that nothing was printed raw; return how much was escaped."""
    shown = "".join(capsys.readouterr())
    assert (raw(shown), forged(shown)) == (set(), []), what
    return shown.count("\\u")


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_no_argument_comes_out_raw(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command: click.Command = dict(commands())[path]
    texts = itertools.cycle(HOSTILE)
    given: list[list[str]] = []
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_flag:
            given += [[option.opts[0], next(texts)], [f"{option.opts[0]}={next(texts)}"]]
            given += [[option.opts[0], f"{next(texts)}={next(texts)}"]]
    for _ in range(6):
        given += [[f"--{next(texts)}"], [f"--{next(texts)}={next(texts)}"], [f"-{next(texts)}"]]
        given += [[next(texts)], [next(texts), next(texts), next(texts), next(texts)]]
    escaped = 0
    for arguments in given:
        main([*path, *arguments], monkeypatch)
        escaped += check(capsys, arguments)
    assert escaped


def test_no_argument_before_a_command_comes_out_raw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    escaped = 0
    for number, text in enumerate(HOSTILE):
        arguments = [[text], [f"--{text}"], [f"-{text}"], [f"--version={text}"], [text, "embed"]][number % 5]
        main(arguments, monkeypatch)
        escaped += check(capsys, arguments)
    assert escaped > len(HOSTILE) / 2


def test_no_variable_comes_out_raw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    texts = itertools.cycle(FOR_SYSTEM_CALLS)
    escaped = 0
    for name in Settings.model_fields:
        for command in ("embed", "rerank", "demo"):
            with monkeypatch.context() as patch:
                patch.setenv(f"{ENV_PREFIX}{name.upper()}", next(texts))
                main([command], patch)
            escaped += check(capsys, (name, command))
    assert escaped > 25


def test_nothing_of_a_configuration_comes_out_raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = itertools.cycle(Settings.model_fields)
    escaped = 0
    for number, text in enumerate(FOR_SYSTEM_CALLS):
        quoted = json.dumps(text)
        content = [
            text,
            f"{quoted} = 1",
            f"{next(names)} = {quoted}",
            f"[{next(names)}]\n{quoted} = {quoted}",
            f"kafka = {quoted}",
        ][number % 5]
        config = tmp_path / f"{text.replace('/', '')[:40]}.toml"
        config.write_text(content, encoding="utf-8")
        main(["embed", "--config", f"{config}{text if number % 3 == 0 else ''}"], monkeypatch)
        escaped += check(capsys, content)
    assert escaped > len(FOR_SYSTEM_CALLS) / 2


# -- what Python prints by itself ----------------------------------------------------------------------------


class Unending:
    """Raises where nobody can catch it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __del__(self) -> None:
        raise ValueError(self.text)


class Unwritable:
    """Cannot be formatted, for a reason from outside."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        raise ValueError(self.text)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_python_prints_by_itself_comes_out_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    take_over_stderr()
    library = logging.getLogger("of no library")
    library.propagate = False  # as where nothing is configured; pytest has handlers of its own
    escaped = 0
    for text in HOSTILE:
        Unending(text)  # ends at once
        escaped += check(capsys, text)
        thread = threading.Thread(target=lambda text=text: (_ for _ in ()).throw(ValueError(text)).__next__())
        thread.start()
        thread.join()
        escaped += check(capsys, text)
        library.warning("%s", text)
        library.warning("%s and %s", text)
        library.warning("%s", Unwritable(text))
        try:
            try:
                raise ValueError(text)  # noqa: TRY301 - it is handled when Ctrl-C comes
            except ValueError:
                raise KeyboardInterrupt  # noqa: B904 - as Python raises it
        except KeyboardInterrupt:
            sys.excepthook(*sys.exc_info())
        escaped += check(capsys, text)
    assert escaped > 4 * len(HOSTILE)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_warning_and_a_record_that_cannot_be_formatted_are_log_lines(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    take_over_stderr()
    logs.configure(load({"log_format": log_format}))
    [handler] = [each for each in logging.getLogger().handlers if isinstance(each, LogHandler)]
    handler.setStream(sys.stderr)
    logging.getLogger().handlers = [handler]
    log = structlog.get_logger("streamer.test")
    error: Any
    for text in HOSTILE:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=True)
            warnings.warn(text, stacklevel=1)
        logging.getLogger(text).warning("%s", text, stack_info=True)
        logging.getLogger("library").warning("%s", Unwritable(text))
        log.info("a name from outside", **{text: text})
        error = ValueError(text)
        error.add_note(text)
        log.error(text, exc_info=ExceptionGroup(text, [error, OSError(2, text, text)]))
    shown = capsys.readouterr().err
    assert (raw(shown), forged(shown)) == (set(), [])
    assert shown.count("\\u") > 5 * len(HOSTILE)
    assert FORGED in shown
