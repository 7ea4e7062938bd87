"""``streamer audit`` on files, and what it reads: attributes, answers, the engine's lists and runs."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamer.cli import cli
from streamer.codec import JSON
from streamer.evaluation.audit.attributes import of_file
from streamer.evaluation.audit.groups import Catalogue, values_of
from streamer.evaluation.questions import ReplayError
from streamer.events import Candidate, Degraded, QueryReranked, QueryResults, RerankedCandidate, Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AT = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)
CLIPS = ("x1", "y1", "x2", "y2")


def answer(number: int, after: Sequence[str], **more: Any) -> QueryReranked:
    """Make the answer to a query whose engine returns :data:`CLIPS`."""
    results = [
        RerankedCandidate(clip, rank, 1.0, CLIPS.index(clip) + 1, 1.0, 0.5, 500, Status.RERANKED)
        for rank, clip in enumerate(after, start=1)
    ]
    event = QueryReranked(
        query_id=f"q{number}", query=f"query {number}", engine="e", issued_at=AT, reranked_at=AT, model_id="m",
        alpha=0.4, depth=100, normalization="minmax", degraded=None, results=results,
    )  # fmt: skip
    return msgspec.structs.replace(event, **more)


def question(number: int, clips: Sequence[str] = CLIPS) -> QueryResults:
    results = [Candidate(clip_id=clip, score=1.0) for clip in clips]
    return QueryResults(query_id=f"q{number}", query=f"query {number}", engine="e", issued_at=AT, results=results)


def write(path: Path, events: Sequence[Any]) -> str:
    path.write_bytes(b"\n".join(map(JSON.encode, events)))
    return str(path)


def biased(count: int) -> list[QueryReranked]:
    """Return answers in which reranking often puts y first."""
    return [answer(number, ("y1", "y2", "x1", "x2") if number % 3 else CLIPS) for number in range(count)]


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["audit", *arguments], env={"COLUMNS": "120"})
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def sides(tmp_path: Path) -> str:
    path = tmp_path / "clips.csv"
    path.write_text("clip_id,side,title\n" + "".join(f"{clip},{clip[0]},{clip}\n" for clip in CLIPS))
    return str(path)


def test_the_verdict_is_the_first_line_and_the_page_and_the_json_say_the_same(sides: str, tmp_path: Path) -> None:
    answers = write(tmp_path / "answers.jsonl", biased(60))
    given_arguments = ("--answers", answers, "--attributes", sides, "--groups", "2", "--top", "2")
    told = run(*given_arguments, "--html", str(tmp_path / "page.html"))
    first = told.splitlines()[0]
    assert first.startswith("Reranking changes who is seen: side=")
    assert "Groups by side" in told
    found = json.loads(run(*given_arguments, "--json", "-"))
    assert (found["sentence"], found["verdict"], found["queries"]) == (first, "shift", 60)
    assert found["passed_over"] == ["title"]
    page = (tmp_path / "page.html").read_text()
    assert page.index(first) < page.index("<table>")
    assert '<th scope="col"' in page


def test_queries_that_cannot_be_compared_are_left_out_and_counted(sides: str, tmp_path: Path) -> None:
    events = [
        *biased(40),
        answer(1, CLIPS),
        answer(41, CLIPS, query_id="replay-0a1b2c3d.q"),
        answer(42, CLIPS, degraded=Degraded.ENCODER_FAILED),
        answer(43, ()),
        answer(44, CLIPS),
    ]
    asked = [question(number) for number in range(44)] + [question(44, CLIPS[::-1]), question(45)]
    found = json.loads(
        run(
            "--answers", write(tmp_path / "answers.jsonl", events), "--events", write(tmp_path / "events.jsonl", asked),
            "--attributes", sides, "--attribute", "side", "--json", "-",
        )
    )  # fmt: skip
    assert found["queries"] == 40
    # q40 and q41 have no answer of their own, nor has q45.
    counted = {"repeated": 1, "replayed": 1, "degraded": 1, "empty": 1, "different": 1, "unanswered": 3}
    assert found["left_out"] == counted


def test_two_runs_are_joined_by_their_topics(sides: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before.run", tmp_path / "after.run"

    def lines(topics: int, clips: Sequence[str]) -> str:
        rows = [(topic, clip, 9 - rank) for topic in range(topics) for rank, clip in enumerate(clips)]
        return "".join(f"{topic} Q0 {clip} 1 {score} tag\n" for topic, clip, score in rows)

    before.write_text(lines(42, CLIPS))
    after.write_text(lines(40, ("y1", "y2", "x1", "x2")) + "40 Q0 y1 1 1 tag\n")
    found = json.loads(
        run("--run", str(before), "--reranked", str(after), "--attributes", sides, "--top", "2", "--json", "-")
    )
    assert (found["queries"], found["changed"]) == (40, 40)
    assert found["left_out"] == {"different": 1, "unanswered": 1}
    (side,) = (each for each in found["attributes"] if each["attribute"] == "side")
    groups = {each["group"]: each["reranking"]["mean"] for each in side["groups"]}
    assert groups == {"x": -0.5, "y": 0.5, "(unknown)": 0}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "exactly one of --answers"),
        (("--answers", "-", "--answers-from-topic"), "exactly one of --answers"),
        (("--run", "-"), "--run and --reranked"),
        (("--answers", "-", "--events", "-", "--from-topic"), "at most one of --events"),
        (("--run", "-", "--reranked", "-", "--from-topic"), "neither with --run"),
        (("--answers", "-"), "exactly one of --attributes"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: tuple[str, ...], told: str) -> None:
    assert told in run(*arguments, code=2)


def test_without_queries_there_is_no_report(sides: str, tmp_path: Path) -> None:
    answers = write(tmp_path / "none.jsonl", [])
    assert "there are no queries to report on" in run("--answers", answers, "--attributes", sides, code=1)


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("ja", ("ja",)),
        ("  two\n words ", ("two words",)),
        (7, ("7",)),
        (1.5, ("1.5",)),
        (True, ("true",)),
        (["ja", "en", "ja", None, "", ["de"]], ("en", "ja")),
        (None, ()),
        ("", ()),
        ([], ()),
        ({"a": 1}, ()),
        (float("nan"), ()),
        (float("-inf"), ()),
        (10**400, ()),
        ("a" * 500, ("a" * 200,)),
    ],
)
def test_what_an_attributes_values_are(attribute: object, values: tuple[str, ...]) -> None:
    assert values_of(attribute) == values


upload = st.tuples(st.sampled_from("ab"), st.integers(0, 4))


@given(st.lists(st.one_of(upload, st.sampled_from("ab")), max_size=30))
def test_the_newest_upload_counts_and_a_deleted_one_does_not_return(steps: list[Any]) -> None:
    catalogue = Catalogue()
    expected: dict[str, int] = {}
    newest: dict[str, int] = {}
    for step in steps:
        if isinstance(step, str):
            catalogue.delete(step)
            expected.pop(step, None)
            continue
        clip, version = step
        catalogue.put(clip, {"version": version}, AT + dt.timedelta(seconds=version))
        if version > newest.get(clip, -1) or (version == newest[clip] and clip in expected):
            expected[clip] = newest[clip] = version
    assert {clip: catalogue.of(clip) for clip in "ab" if clip in catalogue} == {
        clip: (("version", (str(version),)),) for clip, version in expected.items()
    }


def test_attributes_from_json_lines(tmp_path: Path) -> None:
    lines = [
        {"clip_id": "a", "uri": "file:///a", "uploaded_at": "2026-11-26T02:00:00Z", "attributes": {"side": "x"}},
        {"clip_id": "a", "uploaded_at": "2026-11-26T01:00:00Z", "attributes": {"side": "older"}},
        {"clip_id": "b", "attributes": {"side": ["x", "y"], "more": {"a": 1}}},
        {"clip_id": "c", "attributes": {"side": "x"}},
        {"clip_id": "c", "attributes": None},
        {"clip_id": "d"},
    ]
    path = tmp_path / "clips.jsonl.gz"
    path.write_bytes(gzip.compress("\n\n".join(map(json.dumps, lines)).encode()))
    found = of_file(path)
    assert len(found) == 3
    assert [found.of(clip) for clip in "abcd"] == [(("side", ("x",)),), (("side", ("x", "y")),), (), ()]
    assert found.counts() == {"side": {"x": 2, "y": 1}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"clip_id": "a"}\n{"clip_id": 7}\n', ":2: expected a clip"),
        (b'{"clip_id": "a", "attributes": []}', ":1: expected a clip"),
        (b"clip,side\n", ":1: expected JSON lines, or a header of CSV"),
        (b"clip_id,side\na,x\nb\n", ":3: expected 2 columns and a clip_id, found 1"),
        (b"clip_id,side\n,x\n", ":2: expected 2 columns and a clip_id"),
        (b'clip_id,side\na,"x\n', "expected CSV in UTF-8"),
        (b"clip_id,side\na,\xff\n", "expected CSV in UTF-8"),
        (b"", ":1: expected JSON lines"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_line(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "clips"
    path.write_bytes(content)
    with pytest.raises(ReplayError) as caught:
        of_file(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
