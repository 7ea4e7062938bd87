"""The verdict must see what it is there to see: a sound run passes, and each way to break a guarantee is found."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.chaos.inputs import CE_CAUSE, EPOCH, Delete, Input, Query, Refused, Upload, make_inputs, unreadable
from tests.chaos.ledger import Ledger
from tests.chaos.oracle import living
from tests.chaos.scales import SMALL
from tests.chaos.verify import OUTPUTS, TOLERANCE, StoredClip, Verdict
from tests.support.driver import EMBEDDED, RERANKED, RESULTS, UPLOADED, Record

if TYPE_CHECKING:
    from collections.abc import Callable

Outputs = dict[str, list[Record]]
Store = dict[str, StoredClip]
FILES = [f"file-{index}.mp4" for index in range(4)]


def stored(file: str, upload: Upload | None = None) -> StoredClip:
    number = FILES.index(file) + 1
    uploaded_us = round((upload.uploaded_at if upload else EPOCH).timestamp() * 1e6)
    return StoredClip(np.full((number, 2), number, np.float32), tuple(range(number)), 500 * number, uploaded_us)


CLEAN = {file: stored(file) for file in FILES}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Input]:
    folder = tmp_path_factory.mktemp("clips")
    drafts = make_inputs(3, replace(SMALL, queries=20, uploads=120), folder, FILES, "http://127.0.0.1:1")
    return [each.placed(0, offset) for offset, each in enumerate(drafts)]


def caused(cause: Input, topic: str, event: dict[str, object]) -> Record:
    return Record(cause.record.key, json.dumps(event).encode(), cause.record.headers, topic)


def announcement(cause: Input, upload: Upload) -> Record:
    reference = CLEAN[upload.file]
    event = {"clip_id": upload.clip_id, "model_id": "m", "frames": len(reference.times_ms)}
    times = {"uploaded_at": upload.uploaded_at.isoformat(), "embedded_at": EPOCH.isoformat()}
    return caused(cause, EMBEDDED, event | times | {"duration_ms": reference.duration_ms})


def answer(cause: Input, query: Query, *, degraded: str | None = None) -> Record:
    results = [
        {"clip_id": clip_id, "rank": rank, "score": 1.0, "initial_rank": rank, "initial_score": 1.0}
        | {"frame_score": None, "moment_ms": None, "status": "not_embedded"}
        for rank, clip_id in enumerate(query.candidates, 1)
    ]
    times = {"issued_at": EPOCH.isoformat(), "reranked_at": EPOCH.isoformat()}
    method = {"model_id": "m", "alpha": 0.4, "depth": 100, "normalization": "minmax", "degraded": degraded}
    event = {"query_id": query.query_id, "query": "q", "engine": "e", "results": results}
    return caused(cause, RERANKED, event | times | method)


def dead_letter(cause: Input, refused: Refused, **changed: str) -> Record:
    why = {"reason": refused.reason, "error": "e", "topic": f"p.{cause.record.topic}", "attempts": "1"}
    why |= {"partition": "0", "offset": str(cause.record.offset), "at": EPOCH.isoformat()} | changed
    headers = tuple((f"dlq.{name}", value.encode()) for name, value in why.items())
    return Record(cause.record.key, cause.record.value, cause.record.headers + headers, f"{cause.record.topic}.dlq")


@pytest.fixture
def outputs(inputs: list[Input]) -> Outputs:
    found: Outputs = {topic: [] for topic in OUTPUTS}
    for each in inputs:
        match each.meaning:
            case Upload() as upload:
                found[EMBEDDED].append(announcement(each, upload))
            case Query() as query:
                found[RERANKED].append(answer(each, query))
            case Refused() as refused:
                found[f"{each.record.topic}.dlq"].append(dead_letter(each, refused))
            case Delete():
                pass
    return found


@pytest.fixture
def store(inputs: list[Input]) -> Store:
    return {clip_id: stored(upload.file, upload) for clip_id, upload in living(inputs).items()}


def broken(inputs: list[Input], outputs: Outputs, store: Store, ledger: Ledger | None = None) -> set[str]:
    return {
        finding.guarantee
        for finding in Verdict(inputs, outputs, ledger or Ledger()).findings(store, CLEAN)
        if not finding.kept
    }


def test_the_check_passes_a_run_without_violations(inputs: list[Input], outputs: Outputs, store: Store) -> None:
    assert broken(inputs, outputs, store) == set()


@pytest.mark.parametrize("topic", [EMBEDDED, RERANKED, f"{UPLOADED}.dlq", f"{RESULTS}.dlq"])
def test_the_check_finds_a_lost_and_a_duplicated_output(
    inputs: list[Input], outputs: Outputs, store: Store, topic: str
) -> None:
    one = outputs[topic].pop()
    assert len(broken(inputs, outputs, store)) == 1
    outputs[topic] += [one, one]
    assert len(broken(inputs, outputs, store)) == 1


@pytest.mark.parametrize("topic", OUTPUTS)
def test_the_check_finds_an_output_without_its_record(
    inputs: list[Input], outputs: Outputs, store: Store, topic: str
) -> None:
    stranger = Record(b"k", b"{}", ((CE_CAUSE, b"unheard of"),), topic)
    misplaced = next(each for each in inputs if isinstance(each.meaning, Delete))
    for extra in (stranger, replace(stranger, headers=misplaced.record.headers)):
        assert broken(inputs, outputs | {topic: [*outputs[topic], extra]}, store) == {
            "nothing else is in the output topics"
        }


def spoiled(record: Record, spoil: Callable[[dict[str, Any]], object]) -> Record:
    event = record.event
    spoil(event)
    return replace(record, value=json.dumps(event).encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event["results"].reverse(),
        lambda event: event["results"].pop(),
        lambda event: event["results"][0].update(clip_id="unasked"),
        lambda event: event.update(query_id="another"),
        lambda event: event.pop("model_id"),
    ],
    ids=["order", "one missing", "another candidate", "another query", "no event of the topic"],
)
def test_the_check_finds_a_result_that_does_not_match_its_query(
    inputs: list[Input], outputs: Outputs, store: Store, spoil: Callable[[dict[str, Any]], object]
) -> None:
    outputs[RERANKED][0] = spoiled(outputs[RERANKED][0], spoil)
    assert broken(inputs, outputs, store) == {"every answer is a permutation of its candidates"}


@pytest.mark.parametrize("changed", [{"frames": 99}, {"duration_ms": 1}, {"uploaded_at": "2020-01-01T00:00:00Z"}])
def test_the_check_finds_an_embedded_event_of_another_upload(
    inputs: list[Input], outputs: Outputs, store: Store, changed: dict[str, object]
) -> None:
    outputs[EMBEDDED][0] = spoiled(outputs[EMBEDDED][0], lambda event: event.update(changed))
    assert broken(inputs, outputs, store) == {"every announcement fits its upload"}


@pytest.mark.parametrize("changed", [{"reason": "internal"}, {"offset": "7000"}, {"topic": "another"}])
def test_the_check_finds_a_dead_letter_with_a_wrong_source_or_reason(
    inputs: list[Input], outputs: Outputs, store: Store, changed: dict[str, str]
) -> None:
    cause, meaning = next((each, each.meaning) for each in inputs if isinstance(each.meaning, Refused))
    letters = outputs[f"{cause.record.topic}.dlq"]
    letters[0] = dead_letter(cause, meaning, **changed)
    assert broken(inputs, outputs, store) == {"dead letters are exactly those that the inputs explain"}


def test_the_check_finds_a_missing_clip_and_a_clip_that_should_be_deleted(
    inputs: list[Input], outputs: Outputs, store: Store
) -> None:
    _, one = store.popitem()
    assert broken(inputs, outputs, store) == {"the store holds exactly the clips that the log says are alive"}
    store = {clip_id: stored(upload.file, upload) for clip_id, upload in living(inputs).items()}
    assert broken(inputs, outputs, store | {"undead": one}) == {
        "the store holds exactly the clips that the log says are alive"
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"uploaded_us": 1},
        {"duration_ms": 1},
        {"times_ms": (7,)},
        {"vectors": np.full((1, 2), 1 + 2 * TOLERANCE, np.float32)},
        {"vectors": np.ones((2, 2), np.float32)},
    ],
    ids=["version", "duration", "times", "vectors", "their number"],
)
def test_the_check_finds_a_clip_that_differs_from_a_clean_run(
    inputs: list[Input], outputs: Outputs, store: Store, changed: dict[str, Any]
) -> None:
    clip_id = next(clip_id for clip_id, upload in living(inputs).items() if upload.file == FILES[0])
    store[clip_id] = replace(store[clip_id], **changed)
    assert broken(inputs, outputs, store) == {"each clip is stored as a clean run stores it, in the right version"}


def test_what_the_ledger_allows_is_counted_apart(inputs: list[Input], outputs: Outputs, store: Store) -> None:
    [doubled, missing] = [each for each in inputs if isinstance(each.meaning, Query)][:2]
    answers = {record.header(CE_CAUSE): record for record in outputs[RERANKED]}
    outputs[RERANKED] = [each for each in outputs[RERANKED] if each.header(CE_CAUSE) != missing.mark]
    outputs[RERANKED].append(answers[doubled.mark])
    assert broken(inputs, outputs, store) == {"every query event is answered exactly once"}
    ledger = Ledger()
    ledger.allow_again(RESULTS, 0, doubled.record.offset, doubled.record.offset + 1)
    assert broken(inputs, outputs, store, ledger) == {"every query event is answered exactly once"}
    ledger.allow_gone(RESULTS, 0, missing.record.offset, missing.record.offset + 1)
    assert broken(inputs, outputs, store, ledger) == set()
    verdict = Verdict(inputs, outputs, ledger)
    verdict.findings(store, CLEAN)
    assert verdict.seen()["queries"] == {"once": 18, "again, as told": 1, "deleted unread": 1}
    outputs[RERANKED].append(answers[doubled.mark])
    assert broken(inputs, outputs, store, ledger) == {"every query event is answered exactly once"}


def test_an_allowance_holds_for_its_topic_its_partition_and_its_log(inputs: list[Input]) -> None:
    one = next(each for each in inputs if isinstance(each.meaning, Query))
    offset = one.record.offset
    for topic, partition, first, end, most in (
        (RESULTS, 0, offset, offset + 1, 2),
        (RESULTS, 0, offset + 1, offset + 2, 1),
        (RESULTS, 0, 0, offset, 1),
        (RESULTS, 1, offset, offset + 1, 1),
        (UPLOADED, 0, offset, offset + 1, 1),
    ):
        ledger = Ledger()
        ledger.allow_again(topic, partition, first, end)
        assert ledger.bounds(one) == (1, most)
    ledger = Ledger()
    ledger.replace_log(RESULTS, 0)
    ledger.allow_gone(RESULTS, 0, offset, offset + 1)
    assert ledger.bounds(one) == (1, 1)
    assert ledger.bounds(replace(one, generation=1)) == (0, 1)


def test_a_query_may_become_a_dead_letter_only_where_its_answer_was_too_large(
    inputs: list[Input], outputs: Outputs, store: Store
) -> None:
    query = max(
        (each for each in inputs if isinstance(each.meaning, Query)),
        key=lambda each: len(each.meaning.candidates) if isinstance(each.meaning, Query) else 0,
    )
    outputs[RERANKED] = [each for each in outputs[RERANKED] if each.header(CE_CAUSE) != query.mark]
    outputs[f"{RESULTS}.dlq"].append(dead_letter(query, Refused("too_large")))
    assert "every query event is answered exactly once" in broken(inputs, outputs, store)
    ledger = Ledger()
    ledger.limit(RERANKED, 200)
    assert broken(inputs, outputs, store, ledger) == set()
    ledger = Ledger()
    ledger.limit(RERANKED, 10**6)
    assert "every query event is answered exactly once" in broken(inputs, outputs, store, ledger)


def test_an_answer_may_be_degraded_only_where_the_store_could_not_be_read(
    inputs: list[Input], outputs: Outputs, store: Store
) -> None:
    guarantee = "no answer is degraded while the store can be read"
    for reason, kept in (("store_unavailable", True), ("encoder_failed", False)):
        query, meaning = next((each, each.meaning) for each in inputs if isinstance(each.meaning, Query))
        outputs[RERANKED] = [each for each in outputs[RERANKED] if each.header(CE_CAUSE) != query.mark]
        outputs[RERANKED].append(answer(query, meaning, degraded=reason))
        assert broken(inputs, outputs, store) == {guarantee}
        ledger = Ledger()
        ledger.allow_degraded(RESULTS, 0, 0, query.record.offset)
        assert broken(inputs, outputs, store, ledger) == {guarantee}
        ledger.allow_degraded(RESULTS, 0, 0, query.record.offset + 1)
        assert broken(inputs, outputs, store, ledger) == (set() if kept else {guarantee})


def test_a_batch_that_cannot_be_read_needs_a_dead_letter_that_names_its_place(
    inputs: list[Input], outputs: Outputs, store: Store
) -> None:
    place = len(inputs)
    batch = unreadable(RESULTS, "unreadable", b"").placed(0, place)
    inputs = [*inputs, batch]
    assert broken(inputs, outputs, store) == {"dead letters are exactly those that the inputs explain"}
    letter = replace(dead_letter(batch, Refused("unreadable")), key=None, value=None)
    letter = replace(letter, headers=tuple(header for header in letter.headers if header[0] != CE_CAUSE))
    outputs[f"{RESULTS}.dlq"].append(letter)
    assert broken(inputs, outputs, store) == set()
    elsewhere = dead_letter(batch, Refused("unreadable"), offset=str(place + 1))
    outputs[f"{RESULTS}.dlq"][-1] = replace(elsewhere, headers=elsewhere.headers[1:])
    assert broken(inputs, outputs, store) == {
        "dead letters are exactly those that the inputs explain",
        "nothing else is in the output topics",
    }


HELD = {"the store holds exactly the clips that the log says are alive"}


def test_a_clip_that_the_store_has_lost_may_not_stay_away_once_the_log_was_read_again(
    inputs: list[Input], outputs: Outputs, store: Store
) -> None:
    deleted = {each.meaning.clip_id for each in inputs if isinstance(each.meaning, Delete)}
    lost = next(clip_id for clip_id in store if clip_id not in deleted)
    del store[lost]
    ledger = Ledger()
    assert broken(inputs, outputs, store, ledger) == HELD
    ledger.forget([lost])
    assert broken(inputs, outputs, store, ledger) == HELD
    ledger.replace_log(UPLOADED)  # the log that had it is not there any more
    assert broken(inputs, outputs, store, ledger) == set()


def test_a_lost_clip_may_stay_away_if_it_was_deleted_while_the_store_did_not_know_it(
    inputs: list[Input], outputs: Outputs, store: Store
) -> None:
    deleted = {each.meaning.clip_id for each in inputs if isinstance(each.meaning, Delete)}
    lost = next(clip_id for clip_id in store if clip_id in deleted)
    del store[lost]
    ledger = Ledger()
    ledger.forget([lost])
    assert broken(inputs, outputs, store, ledger) == HELD
    late = [replace(each, published_at=time.time()) if each.meaning == Delete(lost) else each for each in inputs]
    assert broken(late, outputs, store, ledger) == set()


def test_a_deleted_clip_lives_again_only_if_the_store_has_lost_its_tombstone(
    inputs: list[Input], outputs: Outputs, store: Store
) -> None:
    dead = next(
        each.meaning for each in inputs if isinstance(each.meaning, Upload) and each.meaning.clip_id not in store
    )
    store[dead.clip_id] = stored(dead.file, dead)
    ledger = Ledger()
    assert broken(inputs, outputs, store, ledger) == HELD
    ledger.forget([dead.clip_id])
    assert broken(inputs, outputs, store, ledger) == set()


def test_clips_that_were_deleted_or_lost_are_not_known_to_have_been_there(
    inputs: list[Input], outputs: Outputs
) -> None:
    ledger = Ledger()
    since = Verdict(inputs, outputs, ledger).embedded_since()
    uploaded = {each.meaning.clip_id for each in inputs if isinstance(each.meaning, Upload)}
    deleted = {each.meaning.clip_id for each in inputs if isinstance(each.meaning, Delete)}
    assert since.keys() == uploaded - deleted
    assert {*since.values()} == {EPOCH.timestamp()}
    lost = next(iter(since))
    ledger.forget([lost])
    assert Verdict(inputs, outputs, ledger).embedded_since().keys() == uploaded - deleted - {lost}


def test_the_oracle_follows_the_log() -> None:
    old, new = (Upload("c", file, EPOCH + timedelta(hours=hour)) for hour, file in enumerate(FILES[:2]))
    delete = Delete("c")
    cases: list[tuple[list[Upload | Delete], Upload | None]] = [
        ([old], old),
        ([old, new], new),
        ([new, old], new),
        ([old, delete], None),
        ([old, delete, old], None),
        ([old, delete, new], new),
        ([old, delete, new, delete], None),
        ([new, delete, old], None),
        ([old, new, delete, delete, new], None),
    ]
    for lives, alive in cases:
        log = [
            Input(0, Record(b"c", None, topic=UPLOADED, partition=0, offset=offset), meaning)
            for offset, meaning in enumerate(lives)
        ]
        assert living(reversed(log)) == ({"c": alive} if alive else {}), lives


def test_the_oracle_follows_a_partition_from_one_log_to_the_next() -> None:
    upload = Input(0, Record(b"c", None, topic=UPLOADED, partition=0, offset=9), Upload("c", FILES[0], EPOCH))
    delete = Input(0, Record(b"c", None, topic=UPLOADED, partition=0, offset=2), Delete("c"), generation=1)
    assert living([delete, upload]) == {}
