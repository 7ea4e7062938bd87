"""Whose answers an evaluation reads, where several consumer groups or models have answered the same queries."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import pytest

from streamer.cli import main
from streamer.codec import JSON
from streamer.evaluation import questions, replay
from streamer.evaluation.questions import answers_of_file, answers_of_topic
from streamer.evaluation.replay import through_kafka
from streamer.evaluation.sources import OneSource, Source
from streamer.events import Candidate, QueryReranked, QueryResults, Reason
from streamer.kafka import Output, Record, dead_letter
from streamer.kafka.outputs import GROUP
from streamer.settings import SettingsError, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

AT = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)
COLOURS = {"blue": "streamer-rerank-blue", "green": "streamer-rerank-green"}
BLUE, GREEN = COLOURS.values()


def answer(query_id: str, model_id: str) -> QueryReranked:
    return QueryReranked(
        query_id=query_id, query="q", engine="e", issued_at=AT, reranked_at=AT, model_id=model_id, alpha=0.4, depth=9,
        normalization="minmax", degraded=None, results=[],
    )  # fmt: skip


def record(query_id: str, model_id: str, group: str = "") -> Record:
    headers = ((GROUP, group.encode()),) if group else ()
    value = JSON.encode(answer(query_id, model_id))
    return Record("query.reranked", 0, 0, query_id.encode(), value, headers, AT)


# -- recorded answers --------------------------------------------------------------------------------------------------


class Topic:
    """A topic that holds these records."""

    records_: Sequence[Record] = ()

    def __init__(self, *_: object) -> None:
        pass

    def spans(self) -> list[int]:
        return [0]

    def records(self, _: int) -> Iterator[Record]:
        return iter(self.records_)

    def close(self) -> None:
        pass


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> type[Topic]:
    both = [record(f"q{n}", f"m-{name}", group) for n in range(3) for name, group in COLOURS.items()]
    monkeypatch.setattr(Topic, "records_", both)
    monkeypatch.setattr(questions, "TopicReader", Topic)
    return Topic


@pytest.mark.usefixtures("topic")
def test_answers_of_two_groups_are_refused_and_both_are_named_with_the_option_that_chooses() -> None:
    with pytest.raises(SettingsError, match=f"--group-suffix, .*: several .* have answered: {BLUE}, {GREEN}; choose"):
        list(answers_of_topic(load()))


@pytest.mark.usefixtures("topic")
@pytest.mark.parametrize("colour", ["blue", "green"])
@pytest.mark.parametrize("by", ["group_suffix", "group_rerank", "model_id"])
def test_the_answers_of_the_one_that_is_chosen_are_read_alone(colour: str, by: str) -> None:
    settings = {"group_suffix": {by: f"-{colour}"}, "group_rerank": {by: f"streamer-rerank-{colour}"}}.get(by, {})
    read = answers_of_topic(load(settings), f"m-{colour}" if by == "model_id" else None)
    assert [(each.query_id, each.model_id) for each in read] == [(f"q{number}", f"m-{colour}") for number in range(3)]


@pytest.mark.usefixtures("topic")
def test_a_group_that_has_answered_nothing_is_named_beside_those_that_have() -> None:
    with pytest.raises(SettingsError, match=rf"no answers of streamer-rerank-red; .* m-blue \({BLUE}\), m-green"):
        list(answers_of_topic(load({"group_suffix": "-red"})))


def test_a_group_that_answers_alone_needs_no_option(topic: type[Topic]) -> None:
    topic.records_ = [record("q1", "m", BLUE), record("q2", "m", BLUE)]
    assert [each.query_id for each in answers_of_topic(load())] == ["q1", "q2"]


def test_answers_of_two_models_of_one_group_are_refused_too(topic: type[Topic]) -> None:
    topic.records_ = [record("q1", "old", BLUE), record("q2", "new", BLUE)]
    with pytest.raises(SettingsError, match="several models or groups: new, old; --model-id chooses one"):
        list(answers_of_topic(load({"group_suffix": "-blue"})))
    assert [each.query_id for each in answers_of_topic(load({"group_suffix": "-blue"}), "new")] == ["q2"]


def test_a_recorded_file_of_two_models_is_refused_until_one_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    recorded = [answer("q1", "one"), answer("q1", "two"), answer("q2", "one")]
    path.write_bytes(b"\n".join(map(JSON.encode, recorded)))
    with pytest.raises(SettingsError, match="one, two; --model-id chooses one"):
        list(answers_of_file(path))
    assert [each.query_id for each in answers_of_file(path, "one")] == ["q1", "q2"]
    with pytest.raises(SettingsError, match=r"no answers of three; there are those of one \(group unknown\), two"):
        list(answers_of_file(path, "three"))


def test_the_pilot_decides_on_one_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    recorded = [answer(f"q{number}", model_id) for number in range(3) for model_id in ("one", "two")]
    path.write_bytes(b"\n".join(map(JSON.encode, recorded)))
    command = ["streamer", "pilot", "--answers", str(path), "--json", "-"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "several models or groups: one, two; --model-id chooses one" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*command, "--model-id", "two"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["queries"] == 3


def test_a_message_names_a_few_of_many() -> None:
    source = OneSource(group="none", advice="")
    many = [(answer("q", f"m{number}"), f"g{number}") for number in range(7)]
    with pytest.raises(SettingsError, match=r"m4 \(g4\) and 2 more$"):
        list(source.of(many))


def test_an_answer_without_a_group_is_another_source_only_if_its_model_is() -> None:
    source = OneSource(group=BLUE, advice="")
    assert source.admits(Source(BLUE, "m"))
    assert not source.admits(Source(GREEN, "m"))
    with pytest.raises(SettingsError, match="other"):
        source.admits(Source("", "other"))


# -- through Kafka -----------------------------------------------------------------------------------------------------


def reply(output: Output, colour: str, *, dead: bool) -> Record:
    key = (output.key or b"").decode()
    if not dead:
        return record(key, f"m-{colour}", COLOURS[colour])
    asked = Record("query.results", 0, 0, output.key, output.value, (), AT, group=COLOURS[colour])
    letter = dead_letter(asked, Reason.INTERNAL, "gave up")
    return Record(letter.topic, 0, 0, letter.key, letter.value, letter.headers, AT)


def let_two_groups_answer(monkeypatch: pytest.MonkeyPatch, *, late: str = "", dead: str = "") -> None:
    """Let both answer each request; ``late`` after the other one, ``dead`` by a dead letter."""
    unread: list[Record] = [record("somebody-elses", "m-red", "red")]

    class Requester:
        def __init__(self, *_: object, is_meant: Callable[[Record], bool], **__: object) -> None:
            self._is_meant = is_meant

        def close(self) -> None:
            pass

        def request(self, output: Output, **_: object) -> Record:
            unread.extend(reply(output, name, dead=name == dead) for name in sorted(COLOURS, key=late.__eq__))
            while unread:
                each = unread.pop(0)
                if self._is_meant(each) and each.key == output.key:
                    return each
            raise AssertionError("no reply is meant")

    monkeypatch.setattr(replay, "Requester", Requester)


def ask(suffix: str | None, count: int = 3) -> list[QueryReranked]:
    candidates = [Candidate(clip_id="c", score=1.0)]
    asked = [
        QueryResults(query_id=f"q{number}", query="q", engine="e", issued_at=AT, results=candidates)
        for number in range(count)
    ]
    settings = load({"group_suffix": suffix} if suffix else {})
    return list(through_kafka(settings, asked, required={}, timeout=1))


@pytest.mark.parametrize("late", ["blue", "green"])
def test_a_replay_that_two_groups_answer_is_refused_however_late_one_of_them_is(
    late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_two_groups_answer(monkeypatch, late=late)
    with pytest.raises(SettingsError, match=f"several consumer groups have answered: {BLUE}, {GREEN}"):
        ask(None)


@pytest.mark.parametrize("late", ["blue", "green"])
@pytest.mark.parametrize("colour", ["blue", "green"])
def test_a_replay_takes_the_answers_of_the_group_that_is_chosen(
    colour: str, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_two_groups_answer(monkeypatch, late=late)
    assert [(each.query_id, each.model_id) for each in ask(f"-{colour}")] == [
        (f"q{number}", f"m-{colour}") for number in range(3)
    ]


def test_what_another_group_has_dead_lettered_is_not_this_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    let_two_groups_answer(monkeypatch, dead="blue")
    assert [each.model_id for each in ask("-green")] == ["m-green"] * 3
