"""What answers say of a match, in the service and in a replay, with a bank and without; and the command for banks."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from streamer import cli, service
from streamer.codec import JSON
from streamer.encoders import EncoderError
from streamer.evaluation import matching
from streamer.evaluation.matching import best_candidate, calibrate, draw_bank, judged_lists, reliability, unseen
from streamer.evaluation.replay import Replay, offline
from streamer.evaluation.trec import Judgments, Qrels
from streamer.events import InvalidEvent, QueryReranked, QueryResults
from streamer.match import BankError, Calibration, read_bank, written
from streamer.settings import load
from streamer.store import Clip, Position, open_store
from tests.support.banks import bank, unit_vectors
from tests.support.encoders import AxisEncoder
from tests.unit.test_reranker import Absent, Harness, event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.match import Bank
    from streamer.store import Store

AT = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)
DIM, CLIPS = 4, 150
FIELDS = {"match", "match_kind", "match_bank"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Make a store whose first clips show an axis each, and whose others show nothing in particular."""
    opened = open_store(f"lmdb:{tmp_path / 'store'}", model_id="axes", dim=DIM, precision="float16")
    rng = np.random.default_rng(0)
    for number in range(CLIPS):
        vectors = np.eye(DIM, dtype=np.float32)[[number]] if number < DIM else unit_vectors(rng, 3, DIM)
        times = np.arange(len(vectors), dtype=np.uint32)
        opened.put([Clip(f"c{number}", AT, Position.of("log", number), 1000, vectors, times)])
    yield opened
    opened.close()


def small_bank(calibration: Calibration | None = None) -> Bank:
    return bank(calibration, dim=DIM)


ASKED = event("axis 2", ("c0", 3.0), ("c2", 2.0), ("new", 1.0), ("c9", 0.5))


def without_time(answer: QueryReranked) -> bytes:
    return JSON.encode(msgspec.structs.replace(answer, reranked_at=AT))


@pytest.mark.parametrize("calibration", [None, Calibration("max", 30, (0.2, 0.9), (0.1, 0.8))])
def test_service_and_replay_say_the_same_and_a_bank_changes_nothing_else(
    calibration: Calibration | None, store: Store
) -> None:
    used = small_bank(calibration)
    answer = Harness(store, bank=used).answer(ASKED)
    encoder = AxisEncoder(DIM, EncoderError("poison"))
    (replayed,) = offline(load({}).method, [ASKED], encoder, store, small_bank(calibration))
    assert without_time(replayed) == without_time(answer)
    assert isinstance(answer.match, float)
    assert (answer.match_kind, answer.match_bank) == ("probability" if calibration else "percentile", used.version)
    cosines = {each.clip_id: each.frame_score for each in answer.results}
    scored = np.array([np.nan if (one := cosines[each.clip_id]) is None else one for each in ASKED.results])
    ids = [each.clip_id for each in ASKED.results]
    found = used.match(ids, scored, encoder.encode_texts(["axis 2"])[0], "max")
    assert found is not None
    assert answer.match == found.value
    plain = Harness(store).answer(ASKED)
    said = json.loads(without_time(answer))
    assert json.dumps({name: value for name, value in said.items() if name not in FIELDS}) == json.dumps(
        json.loads(without_time(plain))
    )


def test_without_a_bank_an_answer_has_the_bytes_that_it_had_before_there_were_any(store: Store) -> None:
    ((output,),) = Harness(store).run(event("axis 2", ("c2", 2.0), ("c0", 1.0), issued_at=AT))
    value = re.sub(rb'"reranked_at":"[^"]+"', b'"reranked_at":"T"', output.value or b"")
    assert value == (
        b'{"query_id":"q","query":"axis 2","engine":"e","issued_at":"2026-11-26T00:00:00Z","reranked_at":"T",'
        b'"model_id":"axes","alpha":0.4,"depth":100,"normalization":"minmax","missing":"impute","pooling":"max",'
        b'"degraded":null,"results":['
        b'{"clip_id":"c2","rank":1,"score":1.0,"initial_rank":1,"initial_score":2.0,"frame_score":1.0,"moment_ms":0,'
        b'"status":"reranked"},'
        b'{"clip_id":"c0","rank":2,"score":0.0,"initial_rank":2,"initial_score":1.0,"frame_score":0.0,"moment_ms":0,'
        b'"status":"reranked"}]}'
    )


@pytest.mark.parametrize("asked", [event("axis 2", ("new", 1.0)), event("axis 2")], ids=["no frames", "no candidates"])
def test_a_list_without_any_frame_has_no_match(asked: QueryResults, store: Store) -> None:
    harness = Harness(store, bank=small_bank())
    assert FIELDS.isdisjoint(json.loads(JSON.encode(harness.answer(asked))))
    assert harness.metrics.registry.get_sample_value("streamer_match_ratio_count") == 0


def test_a_degraded_answer_has_no_match() -> None:
    answer = Harness(Absent(), bank=small_bank()).answer(ASKED)
    assert answer.degraded == "store_unavailable"
    assert FIELDS.isdisjoint(json.loads(JSON.encode(answer)))


def test_matches_are_counted(store: Store) -> None:
    harness = Harness(store, bank=small_bank())
    answer = harness.answer(ASKED)
    assert harness.metrics.registry.get_sample_value("streamer_match_ratio_sum") == answer.match


def test_an_answer_is_read_with_a_match_and_without_one_and_no_other_value_is_a_match(store: Store) -> None:
    answer = Harness(store, bank=small_bank()).answer(ASKED)
    said = json.loads(JSON.encode(answer))
    assert JSON.decode(QueryReranked, json.dumps(said).encode()) == answer
    for name, value in (("match", 1.5), ("match", "high"), ("match_kind", "guess"), ("match", None)):
        with pytest.raises(InvalidEvent):
            JSON.decode(QueryReranked, json.dumps(said | {name: value}).encode())


def test_a_replays_summary_tells_of_matches_only_where_there_are_any(store: Store) -> None:
    encoder = AxisEncoder(DIM, EncoderError("poison"))
    replayed = [offline(load({}).method, [ASKED], encoder, store, used) for used in (small_bank(), None)]
    with_bank, plain = (Replay(answers).summary() for answers in replayed)
    assert with_bank.startswith(plain + "; match of 1 (percentile, bank 0123456789abcdef): 10 % below ")


# -- the bank and its calibration ----------------------------------------------------------------------------


def test_a_bank_is_drawn_by_the_seed_alone_and_holds_the_stores_vectors(store: Store) -> None:
    drawn = [draw_bank(store, "axes", clips=60, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].clip_ids == drawn[1].clip_ids != drawn[2].clip_ids
    assert len(set(drawn[0].clip_ids)) == 60
    with store.read(drawn[0].clip_ids) as records:
        assert np.concatenate([each.matrix for each in records if each]).tobytes() == drawn[0].matrix.tobytes()
    assert len(draw_bank(store, "axes", clips=1_000, seed=0).clip_ids) == CLIPS


def test_a_draw_ends_before_there_are_too_many_vectors_and_a_small_store_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "MAX_VECTORS", 200)
    made = draw_bank(store, "axes", clips=CLIPS, seed=0)
    assert 190 < len(made.matrix) <= 200
    monkeypatch.setattr(matching, "MAX_VECTORS", 100)
    with pytest.raises(BankError, match="a bank needs 50 or more"):
        draw_bank(store, "axes", clips=CLIPS, seed=0)


def test_an_int8_store_gives_vectors_of_length_1(tmp_path: Path) -> None:
    opened = open_store(f"lmdb:{tmp_path}", model_id="axes", dim=DIM, precision="int8")
    vectors = unit_vectors(np.random.default_rng(0), 60, DIM)
    opened.put(
        [
            Clip(f"c{number}", AT, Position.of("log", number), 1000, vectors[[number]], np.zeros(1, np.uint32))
            for number in range(60)
        ]
    )
    made = draw_bank(opened, "axes", clips=60, seed=0)
    opened.close()
    order = [int(each.removeprefix("c")) for each in made.clip_ids]
    assert np.abs(made.matrix.astype(np.float32) - vectors[order]).max() < 0.01
    assert read_back(made, tmp_path).matrix.tobytes() == made.matrix.tobytes()


def read_back(made: Bank, folder: Path) -> Bank:
    (folder / "bank").write_bytes(written(made, seed=0)[1])
    return read_bank(folder / "bank", "axes", DIM)


def population(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """Draw percentiles, and outcomes whose probability is the percentile's square."""
    percentiles = rng.random(count)
    return percentiles, rng.random(count) < percentiles**2


def test_a_calibration_is_monotone_never_certain_and_reliable_for_unseen_lists() -> None:
    rng = np.random.default_rng(1)
    percentiles, relevant = population(rng, 2_000)
    fitted = calibrate(percentiles, relevant, "max")
    assert list(fitted.probabilities) == sorted(fitted.probabilities)
    assert list(fitted.percentiles) == sorted(set(fitted.percentiles))
    assert 0 < fitted.of(0.0) < 0.1
    assert 0.8 < fitted.of(1.0) < 1
    fresh, outcomes = population(rng, 2_000)
    probabilities = np.array([fitted.of(each) for each in fresh.tolist()])
    measured = reliability(probabilities, outcomes)
    assert measured.calibration_error < 0.05
    assert measured.brier < 0.9 * measured.brier_of_base
    assert sum(each.lists for each in measured.bins) == measured.lists == 2_000
    for each in measured.bins:
        assert each.share_low <= each.share <= each.share_high
    plain = reliability(percentiles, relevant)
    assert plain.calibration_error > 0.1  # which the measurement notices


def test_few_lists_give_no_certainty() -> None:
    fitted = calibrate(np.linspace(0, 1, 20), np.arange(20) >= 10, "max")
    assert fitted.of(0.0) == pytest.approx(1 / 12)
    assert fitted.of(1.0) == pytest.approx(11 / 12)


def test_what_says_nothing_is_worth_nothing_on_unseen_topics() -> None:
    rng = np.random.default_rng(2)
    percentiles, relevant = rng.random(400), rng.random(400) < 0.3
    measured = reliability(unseen(percentiles, relevant, folds=5), relevant)
    assert measured.brier >= 0.98 * measured.brier_of_base
    assert matching.area_under_roc(percentiles, relevant) == pytest.approx(0.5, abs=0.08)


def test_the_area_under_the_roc_counts_pairs_and_ties_half() -> None:
    scores, relevant = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, False, True, True])
    assert matching.area_under_roc(scores, relevant) == (1 + 0.5 + 1 + 1) / 4


def test_the_best_candidate_decides_and_unjudged_ones_count_or_are_left_out(store: Store) -> None:
    encoder = AxisEncoder(DIM, EncoderError("poison"))
    questions = [
        QueryResults(query_id=topic, query=f"axis {topic}", engine="e", issued_at=AT, results=ASKED.results)
        for topic in "0123"
    ]
    answers = list(offline(load({}).method, questions, encoder, store, small_bank()))
    bests = [best_candidate(each.results) for each in answers]
    assert [each and each.clip_id for each in bests][::2] == ["c0", "c2"]
    qrels = Qrels({topic: Judgments.of(["c0", "c2"], ["1", "1"], [1, -1]) for topic in "0123"})
    lists = judged_lists(answers, qrels, leave_out_unjudged=False)
    assert (lists.topics, lists.relevant.tolist()[::2]) == (tuple("0123"), [True, False])
    assert lists.percentiles.tolist() == [each.match for each in answers]
    assert lists.unjudged >= 1
    kept = judged_lists(answers, qrels, leave_out_unjudged=True)
    assert len(kept.topics) == 4 - lists.unjudged
    truth = judged_lists(answers, Qrels(qrels.topics, gallery=CLIPS), leave_out_unjudged=True)
    assert "2" not in truth.topics  # judged -1, which ground truth never is
    assert truth.unjudged == 1


# -- the command ---------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["streamer", *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def files(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write a run, topics and judgments of 40 topics, of which every other one has its axis in the list."""
    assert store.stats().models == {"axes": CLIPS}
    monkeypatch.setattr("streamer.encoders.load_model", lambda *_, **__: AxisEncoder(DIM, EncoderError("poison")))
    monkeypatch.setenv("STREAMER_STORE", f"lmdb:{tmp_path / 'store'}")
    monkeypatch.setenv("STREAMER_MODEL", "axes")
    rng = np.random.default_rng(4)
    lines: dict[str, list[str]] = {"run": [], "topics": [], "qrels": []}
    for topic in range(40):
        clips = [f"c{each}" for each in rng.choice(np.arange(DIM, CLIPS), 20, replace=False)]
        if topic % 2:
            clips[-1] = f"c{topic % DIM}"
        lines["topics"].append(f"{topic}\taxis {topic % DIM}")
        lines["run"] += [f"{topic} Q0 {clip} 1 {20 - place} engine" for place, clip in enumerate(clips)]
        lines["qrels"].append(f"{topic} 0 c{topic % DIM} 1")
    for name, text in lines.items():
        (tmp_path / name).write_text("\n".join(text) + "\n")
    return [f"--{name}={tmp_path / name}" for name in lines]


def test_a_bank_is_fitted_and_a_replay_reads_it(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bank"
    assert run(monkeypatch, "match", "fit", "--out", str(path), "--clips", "100") == 0
    said = capsys.readouterr().out
    assert re.search(r"bank [0-9a-f]{16}: 100 clips \(\d+ vectors\) of axes; matches are percentiles; written to", said)
    assert read_bank(path, "axes", DIM).calibration is None
    html, figures = tmp_path / "page.html", tmp_path / "figures.json"
    reports = ("--html", str(html), "--json", str(figures))
    assert run(monkeypatch, "match", "fit", "--out", str(path), "--clips", "100", *files, *reports) == 0
    assert "40 judged lists (20 relevant" in "".join(capsys.readouterr().out.split("\n"))
    found = json.loads(figures.read_text())
    assert found["reliability"]["lists"] == 40
    assert found["area_under_roc"]["percentile"] > 0.95
    assert found["reliability"]["brier"] < 0.1 < found["reliability"]["brier_of_base"]
    fitted = read_bank(path, "axes", DIM)
    assert fitted.version == found["bank"]["version"]
    assert fitted.calibration is not None
    page = html.read_text()
    assert page.count('id="reliability-bin-') == len(found["reliability"]["bins"])
    monkeypatch.setenv("STREAMER_MATCH", str(path))
    assert run(monkeypatch, "replay", *files[:2], "--out", str(tmp_path / "reranked")) == 0
    assert f"match of 40 (probability, bank {fitted.version})" in capsys.readouterr().out


def test_what_cannot_be_fitted_is_refused(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "bank"))
    for arguments, code, problem in (
        ((*out, files[0]), 2, "--run, --topics and --qrels must be given together"),
        ((*out, "--html", "-"), 2, "--html needs --run, --topics and --qrels"),
        (("--out", "bank.gz"), 2, "a bank is not gzipped"),
        ((*out, "--clips", "49"), 2, "49 is not in the range"),
        (("--out", str(tmp_path / "none" / "bank")), 1, "No such file or directory"),
    ):
        assert run(monkeypatch, "match", "fit", *arguments) == code
        assert problem in " ".join(capsys.readouterr().err.split())
    (tmp_path / "qrels").write_text("".join(f"{topic} 0 other 1\n" for topic in range(40)))
    assert run(monkeypatch, "match", "fit", *out, *files) == 1
    assert capsys.readouterr().err == (
        "streamer: of the best candidates, 0 were judged relevant and 40 not (40 are unjudged); a calibration needs 20 "
        "judged lists or more, 5 of each\n"
    )
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("what", ["no bank", "another model's", "other vectors", "none"])
def test_a_reranker_with_a_wrong_bank_ends_with_2_and_one_line(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bank"
    if what != "none":
        other = bank(model_id="axes" if what == "other vectors" else "other")
        path.write_bytes(b"1501 0 clip 1\n" if what == "no bank" else written(other, seed=0)[1])

    @contextmanager
    def parts(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(metrics=None, health=None)

    monkeypatch.setattr(service, "_service", parts)
    monkeypatch.setattr(service, "_loop", lambda *_: None)
    monkeypatch.setattr(service, "_encoder", lambda *_: AxisEncoder(DIM, EncoderError("poison")))
    assert run(monkeypatch, "rerank", "--model", "axes", "--match", str(path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    problem = {
        "no bank": "not a bank of streamer match fit",
        "another model's": "a bank of the model other, not of axes",
        "other vectors": "vectors of 8 numbers, those of the model have 4",
        "none": "No such file or directory",
    }[what]
    assert line == f"streamer: match (--match, STREAMER_MATCH): {path}: {problem}"


def test_a_bank_of_the_answers_model_is_what_the_setting_gives(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    path.write_bytes(written(small_bank(), seed=0)[1])
    found = load({"match": str(path)}).read_match("axes", DIM)
    assert found is not None
    assert found.clip_ids == bank().clip_ids
    assert load({}).read_match("axes", DIM) is None
