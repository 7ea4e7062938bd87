"""Names of topics, groups and roles stand in one table, and everything that goes by them agrees with it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import streamer
from streamer import topology
from streamer.events import TOPICS
from streamer.kafka.client.acls import ROLES, Resource, as_objects
from streamer.settings import SettingsError, load
from streamer.topology import AUDIT, DLQ_REDRIVE, DLQ_SHOW, EMBED, EXPLAIN, READER, REPLAY, RERANK, SERVICES, TOP

PACKAGE = Path(streamer.__file__).parent
SPELLED_ELSEWHERE = {PACKAGE / "topology.py", PACKAGE / "events.py"}
"""The table itself, and the models by topic, from which the schemas in topics/ are written."""
NAMES = {
    *(topic for service in SERVICES.values() for topic in service.topics),
    *(service.group for service in SERVICES.values()),
    *(reader.group for reader in (DLQ_SHOW, DLQ_REDRIVE, REPLAY, AUDIT, EXPLAIN, TOP, READER)),
}


def spelled(source: str) -> list[str]:
    """Return the string constants that are, or hold, one of the names; texts for people have spaces and are none."""
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    texts = [value for value in constants if isinstance(value, str) and not any(map(str.isspace, value))]
    return [text for text in texts if any(name in text for name in NAMES)]


def test_the_search_finds_a_name_in_any_form() -> None:
    source = 'A = "query.results"\nB = f"streamer-rerank-{A}"\nC = "clips.uploaded.dlq"\nD = "Reads query.results."\n'
    assert spelled(source) == ["query.results", "clips.uploaded.dlq", "streamer-rerank-"]


def test_no_other_module_spells_a_topic_or_a_group() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if path not in SPELLED_ELSEWHERE and (names := spelled(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_every_topic_of_a_service_has_an_event_or_is_for_dead_letters() -> None:
    written = {topic for service in SERVICES.values() for topic in (service.input, service.output)}
    assert written == set(TOPICS)
    assert [service.dead_letters for service in SERVICES.values()] == list(topology.DEAD_LETTER_TOPICS)


def test_every_service_and_tool_has_its_privileges() -> None:
    assert {*SERVICES, DLQ_SHOW.role, DLQ_REDRIVE.role, REPLAY.role, AUDIT.role, EXPLAIN.role, TOP.role} <= set(ROLES)


@pytest.mark.parametrize("service", [EMBED, RERANK])
def test_a_group_suffix_stands_between_group_and_instance_in_acls(
    service: topology.Service,
) -> None:
    settings = load({"topic_prefix": "eu.", "group_suffix": "-blue"})
    names = {(each["resource"], each["name"]) for each in as_objects(settings, service.role)}
    assert (Resource.GROUP, f"eu.{service.group}-blue") in names
    assert (Resource.TRANSACTIONAL_ID, f"eu.{service.group}-blue-") in names
    assert {name for resource, name in names if resource is Resource.TOPIC} == {f"eu.{name}" for name in service.topics}


OWN = {
    "topic_prefix": "eu.",
    "topic_query_results": "source.query.results",
    "topic_query_reranked": "answers",
    "topic_clips_uploaded_dlq": "bad-uploads",
    "group_rerank": "search-team",
    "group_suffix": "-blue",
}


def test_configured_names_replace_the_defaults_and_get_no_prefix() -> None:
    settings = load(OWN)
    assert [settings.topic(name) for name in RERANK.topics] == [
        "source.query.results",
        "answers",
        "source.query.results.dlq",
    ]
    assert [settings.topic(name) for name in EMBED.topics] == ["eu.clips.uploaded", "eu.clips.embedded", "bad-uploads"]
    assert settings.group(RERANK.group) == "search-team-blue"
    assert settings.group(EMBED.group) == "eu.streamer-embed-blue"


@pytest.mark.parametrize("role", [*SERVICES, DLQ_REDRIVE.role, REPLAY.role, AUDIT.role, EXPLAIN.role, TOP.role])
def test_acls_name_the_configured_topics_and_groups(role: str) -> None:
    names = {
        each["name"] for each in as_objects(load(OWN), role) if each["resource"] in (Resource.TOPIC, Resource.GROUP)
    }
    known = load(OWN)
    assert names <= {
        *(known.topic(name) for service in SERVICES.values() for name in service.topics),
        *(known.group(service.group) for service in SERVICES.values()),
    }
    assert not any(name.startswith("eu.query") for name in names)


@pytest.mark.parametrize(
    "given",
    [
        {"topic_query_results": "query.reranked"},
        {"topic_clips_uploaded": "all", "topic_query_results": "all"},
        {"topic_query_results_dlq": "clips.uploaded.dlq"},
        {"group_embed": "one", "group_rerank": "one"},
        {"group_embed": "streamer-rerank"},
    ],
)
def test_two_topics_or_groups_of_one_name_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"topic_\*|group_embed"):
        load(given)


def test_redrives_of_a_topic_share_one_transactional_id_whatever_the_group_suffix() -> None:
    one, other = (
        [each for each in as_objects(load({"group_suffix": suffix}), DLQ_REDRIVE.role) if each["resource"] != "group"]
        for suffix in ("-blue", "")
    )
    assert one == other


def test_redrives_of_one_dead_letter_topic_share_their_transactional_id_whatever_names_it() -> None:
    def ids(**given: str) -> set[str]:
        privileges = as_objects(load(given), DLQ_REDRIVE.role)
        return {each["name"] for each in privileges if each["resource"] == Resource.TRANSACTIONAL_ID}

    uploads = "streamer-dlq-eu.clips.uploaded"
    assert ids(topic_prefix="eu.") == {uploads, "streamer-dlq-eu.query.results"}
    assert ids(topic_prefix="eu.", topic_query_results="hits") == {uploads, "streamer-dlq-hits"}
    assert ids(topic_clips_uploaded="eu.clips.uploaded", topic_query_results="hits") == {uploads, "streamer-dlq-hits"}
    assert ids(topic_prefix="eu.", topic_query_results_dlq="bad") == {uploads, "streamer-dlq-bad"}
