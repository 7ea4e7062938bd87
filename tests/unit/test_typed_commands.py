"""Each command line that the documentation tells a reader to type can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from streamer.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"`([^`\n]+)`|^ {4}((?:.*\\\n)*.*)", re.MULTILINE)
"""Code within a line, and lines of blocks, which go on after a backslash."""
PLACEHOLDERS = re.compile(r"^[A-Z_]+$|^\.\.\.$|^\[.*\]$")
GENERATED = ROOT / "docs" / "reference" / "commands.md"


def pieces() -> list[tuple[str, str]]:
    """Return each piece of code with the page that it is on."""
    found = []
    for page in PAGES:
        if page != GENERATED:
            for inline, block in CODE.findall(page.read_text(encoding="utf-8")):
                found.append((page.relative_to(ROOT).as_posix(), (inline or block).replace("\\\n", " ")))
    return found


def streamer_lines() -> list[tuple[str, str]]:
    """Return what is typed after ``streamer``, with the page."""
    pattern = re.compile(r"(?:^|[\s/(&])streamer ([a-z][^#&|)]*)")
    return [(page, line.strip()) for page, code in pieces() for line in pattern.findall(code)]


@pytest.mark.parametrize(("page", "line"), streamer_lines())
def test_a_command_exists_and_takes_the_options_that_a_page_shows(page: str, line: str) -> None:
    words = shlex.split(line)
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        assert words[0] in command.commands, f"{page}: streamer {line}"
        command = command.commands[words.pop(0)]
    if isinstance(command, click.Group):
        return  # it names the group
    context = click.Context(command, resilient_parsing=True)
    values, rest, _ = command.make_parser(context).parse_args(args=words)  # raises where an option does not exist
    assert not rest, f"{page}: {rest}"
    for parameter in command.params:
        value = values.get(parameter.name)
        for given in value if isinstance(value, list) else [value]:
            if isinstance(given, str) and not PLACEHOLDERS.match(given) and isinstance(parameter.type, click.Choice):
                parameter.type.convert(given, parameter, context)


def test_the_pages_show_every_command() -> None:
    def names(command: click.Command, prefix: str = "") -> list[str]:
        if isinstance(command, click.Group):
            return [name for each, below in command.commands.items() for name in names(below, f"{prefix}{each} ")]
        return [prefix.strip()]

    shown = [line for _, line in streamer_lines()]
    for name in names(cli):
        assert any(line == name or line.startswith(f"{name} ") for line in shown), name


def test_each_task_that_a_page_names_exists() -> None:
    tasks = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {(page, name) for page, code in pieces() for name in re.findall(r"^make ([a-z][a-z-]*)", code)}
    assert len(named) > 10
    assert {(page, name) for page, name in named if name not in tasks} == set()


def test_each_benchmark_that_a_page_names_exists() -> None:
    pattern = re.compile(r"(?:python -m bench |make bench NAMES=)([a-z_]+)")
    named = {name for _, code in pieces() for name in pattern.findall(code)}
    assert named
    assert named <= {path.stem for path in (ROOT / "bench").rglob("*.py")}
