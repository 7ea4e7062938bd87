"""All fields of the events: types and limits from their JSON Schemas, meanings from this module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reference.sections import table
from streamer.events import TOPICS, json_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MEANINGS = {
    "clips.uploaded": {
        "clip_id": "The clip's id, also the record's key.",
        "uri": "Where the file can be fetched.",
        "uploaded_at": "When the clip was uploaded; also its version: the newest upload of a clip wins.",
        "attributes": "Anything that the platform wants to keep with the clip; not used.",
    },
    "clips.embedded": {
        "clip_id": "The clip's id, also the record's key.",
        "model_id": "The model whose vectors were stored.",
        "frames": "Number of sampled frames in the store.",
        "duration_ms": "Length of the clip.",
        "uploaded_at": "As in the upload.",
        "embedded_at": "When the vectors were stored.",
        "partial": "True where the file is damaged and only a part of it was embedded.",
    },
    "query.results": {
        "query_id": "The query's id, also the record's key.",
        "query": "The text that was searched for.",
        "engine": "Name and version of the search engine; copied to the output.",
        "issued_at": "When the query was issued; latency is counted from here.",
        "results": "The engine's candidates, best first.",
        "results[].clip_id": "The candidate's clip.",
        "results[].score": "The engine's score; larger is better.",
        "user_key": "An opaque key of the user; not used and not copied.",
    },
    "query.reranked": {
        "query_id": "The query's id, also the record's key.",
        "query": "As in the input.",
        "engine": "As in the input.",
        "issued_at": "As in the input.",
        "reranked_at": "When the event was made.",
        "model_id": "The model that scored the frames.",
        "alpha": "Weight of the engine's score.",
        "depth": "How many of the first candidates were reranked.",
        "normalization": "How scores were normalized before they were blended.",
        "missing": "What stood for the frame score of a candidate without a record: nothing, or a prediction.",
        "pooling": "How the frames' cosines became a clip's frame score.",
        "match": "How well the best candidate matches; only with `STREAMER_MATCH`, and where a frame was scored.",
        "match_kind": "What `match` is: a percentile among other clips, or the probability that it is relevant.",
        "match_bank": "Version of the bank that `match` comes from.",
        "degraded": "Null, or why all candidates keep the engine's order.",
        "results": "Every candidate of the input exactly once, best first.",
        "results[].clip_id": "The candidate's clip.",
        "results[].rank": "Position after reranking, from 1.",
        "results[].score": "The blended score; null for `below_depth`.",
        "results[].initial_rank": "Position in the engine's order, from 1.",
        "results[].initial_score": "The engine's score, unchanged.",
        "results[].frame_score": "Pooled cosine of the frames (with `max` the best one's); null where none was scored.",
        "results[].moment_ms": "Time of the best frame from the clip's start; null where no frame was scored.",
        "results[].status": "What was done with the candidate.",
    },
}


def markdown() -> str:
    """Return a section for each topic.

    Raises KeyError if a field has no explanation here, and ValueError if an explanation has no field.
    """
    parts = []
    for topic in TOPICS:
        fields = dict(_fields(json_schema(topic)))
        left_over = _MEANINGS[topic].keys() - fields.keys()
        if left_over:
            raise ValueError(f"{topic} has no field {', '.join(sorted(left_over))}")
        rows = ((f"`{name}`", *about, _MEANINGS[topic][name]) for name, about in fields.items())
        parts.append(f"## `{topic}`\n\n{table(('field', 'type', 'required', 'limits', 'meaning'), rows)}")
    return "\n".join(parts)


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Yield each field's path with its type, whether it is required, and its limits."""
    definitions = schema.get("$defs", {})

    def below(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, tuple[str, str, str]]]:
        for name, field in node["properties"].items():
            kind, limits = _described(field, definitions)
            yield prefix + name, (kind, "yes" if name in node.get("required", ()) else "no", limits)
            items = field.get("items", {})
            if "$ref" in items:
                yield from below(_resolved(items, definitions), f"{prefix}{name}[].")

    yield from below(schema, "")


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node


def _described(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[str, str]:
    options = [_resolved(each, definitions) for each in field.get("anyOf", [field])]
    kinds = [_kind(each) for each in options]
    limits = [text for each in options for text in _limits(each)]
    return " or ".join(kinds), "; ".join(limits)


def _kind(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    return "time (RFC 3339)" if node.get("format") == "date-time" else str(node["type"])


def _limits(node: Mapping[str, Any]) -> Iterator[str]:
    if "maxLength" in node:
        unit = "bytes of UTF-8" if "bytes of UTF-8" in node.get("description", "") else "characters"
        yield f"{'1 to' if node.get('minLength') else 'at most'} {node['maxLength']:,} {unit}"
    if "maxItems" in node:
        yield f"at most {node['maxItems']:,} items"
    if "maxProperties" in node:
        yield f"at most {node['maxProperties']:,} entries"
    if "pattern" in node:
        yield "not blank"
    if "minimum" in node:
        yield f"{node['minimum']} to {node['maximum']}" if "maximum" in node else f"at least {node['minimum']}"
