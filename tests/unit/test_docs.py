"""What is written about the product agrees with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamer import settings
from streamer.codec import JSON
from streamer.events import TOPICS, Reason
from streamer.metrics import CATALOGUE, LABELS
from tests.support.named_tests import functions_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EVENTS = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")


def test_generated_sections_are_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "scripts/write_docs.py", "--check"], check=True)


def test_the_readme_is_short() -> None:
    words = " ".join(line for line in README.splitlines() if not line.startswith("|")).split()
    assert len(words) <= 1_300


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_the_readmes_example_of_each_event_decodes(topic: str) -> None:
    text = README.split(f"`{topic}`, key", 1)[1].split("\n\n", 2)[1].replace(", ...]", "]")
    event = json.loads(text)
    if topic == "query.reranked":
        assert {result["status"] for result in event["results"]} == {"reranked"}
    JSON.decode(TOPICS[topic], json.dumps(event).encode())  # type: ignore[type-var]  # any of them


def test_the_page_of_events_has_an_example_of_each_that_decodes() -> None:
    examples = re.findall(r"(?:^    .*\n)+", EVENTS, re.MULTILINE)
    for model, example in zip(TOPICS.values(), examples, strict=True):
        JSON.decode(model, json.dumps(json.loads(example)).encode())  # type: ignore[type-var]  # any of them


def test_the_reranked_example_follows_from_the_results_before_it() -> None:
    given, reranked = (json.loads(block) for block in re.findall(r"(?:^    .*\n)+", EVENTS, re.MULTILINE)[2:])
    before = {each["clip_id"]: (rank, each["score"]) for rank, each in enumerate(given["results"], start=1)}
    after = {each["clip_id"]: (each["initial_rank"], each["initial_score"]) for each in reranked["results"]}
    assert after == before
    depth, alpha = reranked["depth"], reranked["alpha"]
    scored = [each for each in reranked["results"] if each["status"] == "reranked"]
    assert {each["initial_rank"] for each in scored} == set(range(1, depth + 1))

    def scaled(name: str) -> dict[str, float]:
        values = {each["clip_id"]: each[name] for each in scored}
        low, high = min(values.values()), max(values.values())
        return {clip_id: (value - low) / (high - low) for clip_id, value in values.items()}

    engine, frames = scaled("initial_score"), scaled("frame_score")
    for each in scored:
        blended = alpha * engine[each["clip_id"]] + (1 - alpha) * frames[each["clip_id"]]
        assert each["score"] == pytest.approx(blended)


def test_the_model_cards_text_is_that_of_its_template() -> None:
    template = (ROOT / "training" / "templates" / "model-card.md.j2").read_text(encoding="utf-8")
    card = " ".join((ROOT / "streamer" / "demo" / "model" / "README.md").read_text(encoding="utf-8").split())
    fixed = re.sub(r"\{%.*?%\}|\{\{.*?\}\}", "\0", template)
    phrases = [" ".join(phrase.split()) for phrase in re.split(r"\0|\|", fixed)]
    for phrase in phrases:
        assert phrase in card


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
    assert used | {"group"} == set(LABELS)  # which Metrics adds to all of them


def test_the_runbook_explains_every_readiness_condition() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    section = runbook.split("## StreamerNotReady", 1)[1].split("\n## ", 1)[0]
    explained = re.findall(r"^\| (\w+) \|", section, re.MULTILINE)[1:]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "streamer").rglob("*.py"))
    reported = set(re.findall(r'not_ready\(\s*"(\w+)"', sources))
    assert sorted(explained) == sorted(LABELS["condition"].split(", "))
    assert len(reported) > 8
    assert reported <= set(explained)


def test_the_page_of_dead_letters_names_every_reason() -> None:
    page = (ROOT / "docs" / "reference" / "dead-letters.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [reason.value for reason in Reason]


def test_the_page_of_events_names_every_header_of_a_dead_letter() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "streamer" / "kafka").rglob("*.py"))
    headers = set(re.findall(r'"(dlq\.[a-z_]+)"', sources))
    assert len(headers) > 8
    assert headers == set(re.findall(r"`(dlq\.[a-z_]+)`", EVENTS))


def test_the_glossary_is_sorted_and_explains_each_term_once() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)[2:]
    assert terms == sorted(set(terms), key=str.lower)


def test_the_code_that_the_design_page_names_exists() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.]+(?:/|\.(?:py|yml|toml)))`", page))
    assert len(named) > 30
    missing = {path for path in named if not ((ROOT / path).exists() or (ROOT / "streamer" / path).exists())}
    assert missing == set()


def test_every_file_that_a_page_names_exists() -> None:
    folders = "streamer|scripts|bench|deploy|tests|topics|training|requirements"
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for path in re.findall(rf"`((?:{folders})/[\w/.-]+)`", page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{page.relative_to(ROOT)}: {path}"


def test_every_test_that_a_page_names_exists() -> None:
    pages = " ".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", pages))
    assert len(named) > 50
    missing = [f"{path}::{name}" for path, name in sorted(named) if name not in functions_of(path)]
    assert not missing


def test_the_changelog_has_the_form_that_it_claims() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "https://keepachangelog.com/" in text
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    kinds = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert kinds
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_setting_that_a_page_names_exists() -> None:
    known = {f"STREAMER_{name.upper()}" for name in settings.Settings.model_fields}
    others = {"STREAMER_CONFIG", "STREAMER_FAULT_POINT"}
    for page in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "streamer" / "demo" / "model" / "README.md",
    ]:
        named = re.findall(r"STREAMER_[A-Z_]+(?!\w|\.\.\.|<)", page.read_text(encoding="utf-8"))
        unknown = {name for name in named if not name.startswith("STREAMER_KAFKA__")} - known - others
        assert unknown == set(), page.relative_to(ROOT)
