"""What is written about the product agrees with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import capacity
from streamer import settings
from streamer.codec import JSON
from streamer.events import TOPICS, Reason
from streamer.metrics import CATALOGUE, LABELS
from streamer.store import record_format

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_in_the_readme_are_those_of_the_code() -> None:
    subprocess.run([sys.executable, ROOT / "scripts/write_docs.py", "--check"], check=True)


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_the_readmes_example_of_each_event_decodes(topic: str) -> None:
    text = README.split(f"`{topic}`, key", 1)[1].split("\n\n", 2)[1].replace(", ...]", "]")
    event = json.loads(text)
    if topic == "query.reranked":
        assert {result["status"] for result in event["results"]} == {"reranked"}
    JSON.decode(TOPICS[topic], json.dumps(event).encode())


def test_the_readme_names_every_reason() -> None:
    assert {reason.value for reason in Reason} <= set(re.findall(r"`([a-z_]+)`", README))


def test_the_example_settings_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(f"STREAMER_{name.upper()}", raising=False)
    loaded = settings.load(config=ROOT / "deploy/streamer.toml")
    assert loaded.kafka["security.protocol"] == "SASL_SSL"
    assert loaded.deadline_ms == 500


def test_the_catalogue_keeps_prometheus_rules_and_every_label_is_bounded() -> None:
    used = set()
    for metric in CATALOGUE.values():
        assert re.fullmatch(r"streamer_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert ("seconds" in metric.name) == (metric.unit == "seconds")
        assert ("bytes" in metric.name) == (metric.unit == "bytes")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.help.endswith(".")
        assert metric.question.endswith("?")
        used |= set(metric.labels)
    assert used == set(LABELS)


def test_the_capacity_page_speaks_of_records_as_they_are_now() -> None:
    figures = json.loads((ROOT / "docs/bench/capacity.json").read_bytes())["figures"]
    assert figures["record_bytes"] == capacity.record_bytes()
    assert list(figures["stored"]) == list(capacity.PRECISIONS)


def test_what_clips_and_queries_cost_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "PRECISIONS", ("int8",))
    figures = capacity.stored(count=200, rounds=5)["int8"]
    ((clip,),) = capacity.clips(1, *capacity.SHAPES[0])
    size = len(record_format.encode(clip, "int8"))
    for engine in ("lmdb", "cluster"):
        assert figures[engine]["bytes_a_clip"] > size
        assert figures[engine]["reader_cpu_s_a_query"] > 0
    assert figures["cluster"]["bytes_out_a_query"] > capacity.CANDIDATES * size
    assert 0 < figures["cluster"]["bytes_in_a_query"] < capacity.CANDIDATES * 200
