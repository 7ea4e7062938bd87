"""Each setting, metric, event field, command, alert and dead-letter reason is explained on exactly one page."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
import yaml

from streamer.cli import cli
from streamer.events import TOPICS, Reason, json_schema
from streamer.metrics import CATALOGUE
from streamer.settings import ENV_PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
REFERENCE = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "reference").glob("*.md"))}
EVERYWHERE = {
    **REFERENCE,
    **{str(path): path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")},
    "README": (ROOT / "README.md").read_text(encoding="utf-8"),
}
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"


def explained(text: str) -> list[str]:
    """Return the names that a page explains: those of its headings, and those that begin the rows of its tables."""
    names: list[str] = []
    for line in text.splitlines():
        found = re.match(r"^(?:#+ |\| )((?:`[^`]+`(?:, )?)+)", line)
        if found:
            names += re.findall(r"`([^`]+)`", found[1])
    return names


PAGES_THAT_EXPLAIN: dict[str, list[str]] = {}
for _page, _text in EVERYWHERE.items():
    for _name in explained(_text):
        PAGES_THAT_EXPLAIN.setdefault(_name, []).append(_page)


def alerts() -> list[str]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("name", [ENV_PREFIX + name.upper() for name in Settings.model_fields])
def test_a_setting_is_explained_once(name: str) -> None:
    assert PAGES_THAT_EXPLAIN.get(name) == ["settings"]


@pytest.mark.parametrize("name", [metric.name for metric in CATALOGUE.values()])
def test_a_metric_is_explained_once(name: str) -> None:
    assert PAGES_THAT_EXPLAIN.get(name) == ["metrics"]


@pytest.mark.parametrize("name", alerts())
def test_an_alert_is_explained_once(name: str) -> None:
    assert PAGES_THAT_EXPLAIN.get(name) == ["alerts"]


@pytest.mark.parametrize("reason", Reason)
def test_a_dead_letter_reason_is_explained_once(reason: Reason) -> None:
    assert PAGES_THAT_EXPLAIN.get(reason.value) == ["dead-letters"]


def sections(text: str) -> dict[str, str]:
    """Return a page's sections of the second level by the name in their heading; each name has one section."""
    parts = re.split(r"^## `([^`]+)`$", text, flags=re.MULTILINE)[1:]
    names = parts[::2]
    assert len(set(names)) == len(names)
    return dict(zip(names, parts[1::2], strict=True))


def fields(schema: Mapping[str, object]) -> Iterator[str]:
    """Yield the paths of the fields of a JSON Schema, from its text alone: objects, and arrays of objects."""
    definitions = schema.get("$defs", {})
    assert isinstance(definitions, dict)

    def below(node: dict[str, object], prefix: str) -> Iterator[str]:
        properties = node["properties"]
        assert isinstance(properties, dict)
        for name, field in properties.items():
            yield prefix + name
            reference = field.get("items", {}).get("$ref")
            if reference:
                yield from below(definitions[reference.removeprefix("#/$defs/")], f"{prefix}{name}[].")

    yield from below(dict(schema), "")


@pytest.mark.parametrize("topic", TOPICS)
def test_each_field_of_an_event_is_explained_once(topic: str) -> None:
    assert [page for page, text in REFERENCE.items() if topic in sections(text)] == ["events"]
    assert explained(sections(REFERENCE["events"])[topic]) == list(fields(json_schema(topic)))


def commands(name: str = "streamer", command: click.Command = cli) -> Iterator[tuple[str, click.Command]]:
    """Yield what can be run, and the whole with its own options."""
    if isinstance(command, click.Group):
        if command is cli:
            yield name, command
        for each, below in command.commands.items():
            yield from commands(f"{name} {each}", below)
    else:
        yield name, command


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_a_command_is_explained_once_with_each_of_its_options(name: str) -> None:
    assert [page for page, text in REFERENCE.items() if name in sections(text)] == ["commands"]
    section = sections(REFERENCE["commands"])[name]
    shown = Counter(re.findall(r"`(--[a-z-]+)`", section))
    options = [each for each in dict(commands())[name].params if isinstance(each, click.Option)]
    assert shown == Counter(flag for option in options for flag in option.opts)
    assert len(section.split()) > len(options)


def test_no_reference_page_explains_what_does_not_exist() -> None:
    known = {
        "settings": {ENV_PREFIX + name.upper() for name in Settings.model_fields},
        "metrics": {metric.name for metric in CATALOGUE.values()},
        "alerts": set(alerts()),
        "dead-letters": {reason.value for reason in Reason},
        "commands": {name for name, _ in commands()}
        | {flag for _, command in commands() for option in command.params for flag in option.opts},
        "events": {*TOPICS, *(name for topic in TOPICS for name in fields(json_schema(topic)))},
    }
    for page, names in known.items():
        assert not set(explained(REFERENCE[page])) - names
