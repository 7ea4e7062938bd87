"""The JSON Schemas and the AsyncAPI document of topics/ against the models."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from streamer import events
from streamer.codec import JSON
from streamer.events import TOPICS, Reason
from streamer.kafka.admin.topic_files import topics_dir, write_schemas
from streamer.topology import DEAD_LETTER_TOPICS

if TYPE_CHECKING:
    from pathlib import Path

ALL_TOPICS = {*TOPICS, *DEAD_LETTER_TOPICS}

formats = FormatChecker()


@formats.checks("date-time", raises=ValueError)
def _is_rfc3339(value: object) -> bool:
    if not isinstance(value, str):
        return True
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", value):
        return False
    return dt.datetime.fromisoformat(value).tzinfo is not None


def schema_file(topic: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((topics_dir() / f"{topic}.schema.json").read_text("utf-8"))
    return document


def validator(topic: str) -> Draft202012Validator:
    schema = schema_file(topic)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=formats)


def asyncapi() -> dict[str, Any]:
    document: dict[str, Any] = msgspec.yaml.decode((topics_dir() / "asyncapi.yaml").read_bytes())
    return document


def resolve(document: dict[str, Any], ref: str) -> Any:
    """Follow a reference inside the document or into a schema file beside it."""
    file, _, pointer = ref.partition("#")
    target: Any = document
    if file:
        target = json.loads((topics_dir() / file).read_text("utf-8"))
    for step in pointer.split("/")[1:]:
        target = target[step]
    return resolve(document, target["$ref"]) if isinstance(target, dict) and "$ref" in target else target


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [ref for child in node.values() for ref in references(child)]
    return [ref for child in node for ref in references(child)] if isinstance(node, list) else []


def message_of(topic: str) -> dict[str, Any]:
    document = asyncapi()
    (channel,) = (c for c in document["channels"].values() if c["address"] == topic)
    message: dict[str, Any] = resolve(document, channel["messages"][TOPICS[topic].__name__]["$ref"])
    return message


EXAMPLES = [
    pytest.param(topic, example["payload"], id=f"{topic}-{example['name']}")
    for topic in TOPICS
    for example in message_of(topic)["examples"]
]

MOMENT = "2026-03-01T09:30:00Z"
UPLOAD: dict[str, Any] = {"clip_id": "c1", "uri": "file:///c1.mp4", "uploaded_at": MOMENT}
RESULTS: dict[str, Any] = {
    "query_id": "q1",
    "query": "a red bicycle",
    "engine": "bm25",
    "issued_at": MOMENT,
    "results": [{"clip_id": "c1", "score": 1.5}],
}
BAD_UPLOADS: list[tuple[str, dict[str, Any], Reason]] = [
    ("id of the wrong type", {"clip_id": 1}, Reason.WRONG_TYPE),
    ("empty id", {"clip_id": ""}, Reason.LIMIT_EXCEEDED),
    ("long id", {"clip_id": "x" * 513}, Reason.LIMIT_EXCEEDED),
    ("null uri", {"uri": None}, Reason.WRONG_TYPE),
    ("long uri", {"uri": "x" * 4097}, Reason.LIMIT_EXCEEDED),
    ("time without an offset", {"uploaded_at": "2026-03-01T09:30:00"}, Reason.WRONG_TYPE),
    ("no time at all", {"uploaded_at": "yesterday"}, Reason.WRONG_TYPE),
    ("day that does not exist", {"uploaded_at": "2026-02-30T09:30:00Z"}, Reason.WRONG_TYPE),
    ("attributes that are a list", {"attributes": []}, Reason.WRONG_TYPE),
    ("many attributes", {"attributes": {str(n): n for n in range(257)}}, Reason.LIMIT_EXCEEDED),
]
BAD_RESULTS: list[tuple[str, dict[str, Any], Reason]] = [
    ("blank query", {"query": " \t"}, Reason.BLANK_QUERY),
    ("long query", {"query": "x" * 2001}, Reason.LIMIT_EXCEEDED),
    ("results that are an object", {"results": {}}, Reason.WRONG_TYPE),
    ("text as a score", {"results": [{"clip_id": "c1", "score": "1"}]}, Reason.WRONG_TYPE),
    ("candidate without a score", {"results": [{"clip_id": "c1"}]}, Reason.WRONG_TYPE),
    (
        "many candidates",
        {"results": [{"clip_id": str(n), "score": 0} for n in range(5001)]},
        Reason.LIMIT_EXCEEDED,
    ),
    ("user key of the wrong type", {"user_key": 7}, Reason.WRONG_TYPE),
]
BAD_DOCUMENTS = [
    *(pytest.param("clips.uploaded", UPLOAD | change, why, id=f"upload-{name}") for name, change, why in BAD_UPLOADS),
    *(pytest.param("query.results", RESULTS | change, why, id=f"results-{name}") for name, change, why in BAD_RESULTS),
]


@pytest.mark.parametrize("topic", TOPICS)
def test_schema_files_are_what_the_models_generate(topic: str) -> None:
    assert schema_file(topic) == events.json_schema(topic), "run: python -m streamer.kafka.admin.topic_files"


def test_writing_the_schemas_changes_only_files_that_differ(tmp_path: Path) -> None:
    assert {path.name for path in write_schemas(tmp_path)} == {f"{topic}.schema.json" for topic in TOPICS}
    for written in tmp_path.iterdir():
        assert written.read_bytes() == (topics_dir() / written.name).read_bytes()
    (tmp_path / "query.results.schema.json").write_text("{}")
    assert write_schemas(tmp_path) == [tmp_path / "query.results.schema.json"]
    assert write_schemas(tmp_path) == []


@pytest.mark.parametrize(("topic", "payload"), EXAMPLES)
def test_examples_are_valid_and_survive_our_codec(topic: str, payload: dict[str, Any]) -> None:
    validator(topic).validate(payload)
    model: Any = TOPICS[topic]
    event = JSON.decode(model, msgspec.json.encode(payload))
    written = JSON.encode(event)
    validator(topic).validate(json.loads(written))
    assert JSON.decode(model, written) == event


@pytest.mark.parametrize(("topic", "document", "reason"), BAD_DOCUMENTS)
def test_schema_and_codec_refuse_the_same(topic: str, document: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(ValidationError):
        validator(topic).validate(document)
    model: Any = TOPICS[topic]
    with pytest.raises(events.InvalidEvent) as refused:
        JSON.decode(model, msgspec.json.encode(document))
    assert refused.value.reason is reason


@pytest.mark.parametrize(("topic", "payload"), EXAMPLES)
def test_schemas_refuse_an_example_without_any_one_of_its_required_fields(topic: str, payload: dict[str, Any]) -> None:
    for field in schema_file(topic)["required"]:
        lacking = {name: value for name, value in payload.items() if name != field}
        with pytest.raises(ValidationError, match=f"'{field}' is a required property"):
            validator(topic).validate(lacking)


def test_unknown_fields_are_allowed() -> None:
    validator("clips.uploaded").validate(UPLOAD | {"title": "new in version 2"})


def test_asyncapi_has_the_parts_that_version_3_requires() -> None:
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert document["info"]["title"]
    assert document["info"]["version"]
    assert document["servers"]["kafka"]["host"]
    assert document["servers"]["kafka"]["protocol"] == "kafka"
    for channel in document["channels"].values():
        assert all(resolve(document, server["$ref"]) for server in channel["servers"])
        assert channel["messages"]
    for operation in document["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel_ref = operation["channel"]["$ref"]
        # Operations refer to the channel's messages, not to those of the components.
        names = {message["$ref"].removeprefix(f"{channel_ref}/messages/") for message in operation["messages"]}
        assert names == set(resolve(document, channel_ref)["messages"])


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi()
    found = references(document)
    assert {f"./{topic}.schema.json" for topic in TOPICS} <= set(found)
    for ref in found:
        assert resolve(document, ref) is not None


def test_asyncapi_channels_are_our_topics_and_each_is_used_once() -> None:
    document = asyncapi()
    assert {channel["address"] for channel in document["channels"].values()} == ALL_TOPICS
    used = [operation["channel"]["$ref"] for operation in document["operations"].values()]
    assert sorted(used) == sorted(f"#/channels/{name}" for name in document["channels"])


@pytest.mark.parametrize("topic", TOPICS)
def test_asyncapi_messages_carry_the_schema_of_their_topic_and_its_key(topic: str) -> None:
    message = message_of(topic)
    assert message["payload"] == {"$ref": f"./{topic}.schema.json"}
    key = resolve(asyncapi(), message["bindings"]["$ref"])["kafka"]["key"]["$ref"]
    key_field = "clip_id" if topic.startswith("clips.") else "query_id"
    assert key.endswith(f"#/properties/{key_field}")
    assert resolve(asyncapi(), key) == schema_file(topic)["properties"][key_field]


OPTIONAL = {"dlq.last_offset", "dlq.timestamp", "dlq.timestamp_type", "dlq.truncated_from"}
"""Headers that not every dead letter has."""


def test_asyncapi_names_every_dead_letter_reason() -> None:
    headers = asyncapi()["components"]["schemas"]["DeadLetterHeaders"]
    assert headers["properties"]["dlq.reason"]["enum"] == [reason.value for reason in Reason]
    assert set(headers["properties"]) - set(headers["required"]) == OPTIONAL
