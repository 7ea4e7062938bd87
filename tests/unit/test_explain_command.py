"""``streamer explain`` on files and a real store of its own: what is said, what the page shows, and what is refused."""

from __future__ import annotations

import datetime as dt
import html.parser
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from streamer.cli import cli
from streamer.codec import JSON
from streamer.events import Candidate, QueryReranked, QueryResults, RerankedCandidate, Status
from streamer.explain import page, pictures, run
from streamer.explain.pictures import Frame
from streamer.method import Method, answer, rerank_candidates
from streamer.store import Clip, Position, open_store
from tests.support.encoders import FakeEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

AT = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)
LATER = "2026-11-27T00:00:00Z"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><b onclick='x'>{{ 7 * 7 }}\x1b[2J\u202e"
PIXEL = "data:image/jpeg;base64,AAAA"
METHOD = Method(alpha=0.4, depth=4, normalization="minmax")
CLIPS = ("a", "b", HOSTILE, "none", "deep")
"""In the engine's order: three with a record, one without, one below the depth."""


def vectors(*angles: float) -> Any:
    """Return unit vectors at these angles (degrees) from the vector of any text."""
    turns = np.radians(angles)
    return np.stack([np.cos(turns), np.sin(turns), np.zeros(len(turns))], axis=1).astype(np.float32)


def clip(clip_id: str, *angles: float, at: dt.datetime = AT, offset: int = 0) -> Clip:
    times = np.arange(len(angles), dtype=np.uint32) * 500
    return Clip(clip_id, at, Position.of("log", offset), 500 * len(angles), vectors(*angles), times)


def write(path: Path, events: Sequence[Any]) -> str:
    path.write_bytes(b"\n".join(map(JSON.encode, events)))
    return str(path)


def uploads_file(path: Path, uris: Mapping[str, str | None]) -> str:
    lines = [{"clip_id": clip, "uri": uri, "uploaded_at": AT.isoformat()} for clip, uri in uris.items()]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


class World:
    """A store with three clips, the answer that reranking gave of them, and the command."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.url = f"lmdb:{folder / 'store'}"
        self.store = open_store(self.url, model_id="colour", dim=3)
        self.store.put([clip("a", 80, 70), clip("b", 60, 20, 40), clip(HOSTILE, 50, 30)])
        scores = (9.0, 8.0, 7.5, 3.0, 1.0)
        candidates = [Candidate(clip_id=clip_id, score=score) for clip_id, score in zip(CLIPS, scores, strict=True)]
        self.question = QueryResults(query_id="q", query="a query", engine="e", issued_at=AT, results=candidates)
        [text] = FakeEncoder().encode_texts(["a query"])
        made = rerank_candidates(METHOD, candidates, text, self.store)
        self.answer = answer(METHOD, self.question, made.results, "colour")
        self.fetched: list[tuple[str, int]] = []
        patch.setattr(run, "load_model", lambda *_, **__: FakeEncoder())
        patch.setattr(pictures.Pictures, "at", self.picture)
        self.uploads: dict[str, str | None] = {
            each: f"https://cdn.example/{number}" for number, each in enumerate(CLIPS)
        }
        del self.uploads["none"]

    def picture(self, uri: str, moment_ms: int) -> Frame:
        self.fetched.append((uri, moment_ms))
        if uri.endswith("/0"):
            return Frame(why=f"not_found: {HOSTILE}")
        return Frame(PIXEL, moment_ms, 8, 6, "https://cdn.example:443")

    def run(self, *arguments: str, code: int = 0, model: bool = True) -> str:
        variables = {"COLUMNS": "160", "STREAMER_STORE": self.url, **({"STREAMER_MODEL": "demo"} if model else {})}
        done = CliRunner().invoke(cli, ["explain", *arguments], env=variables)
        assert done.exit_code == code, f"{done.output} {done.exception!r}"
        return done.output

    def explain(self, answered: QueryReranked | None = None, *more: str, model: bool = True) -> tuple[Any, str]:
        """Return the JSON and the page of an answer, by default that of the store."""
        given = ["q", "--answers", write(self.folder / "answers", [answered or self.answer])]
        given += ["--uploads", uploads_file(self.folder / "uploads", self.uploads)]
        given += ["--html", str(self.folder / "page.html"), "--json", str(self.folder / "data.json"), *more]
        self.told = self.run(*given, model=model)
        data = (self.folder / "data.json").read_text(encoding="utf-8")
        return json.loads(data), (self.folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


class Seen(html.parser.HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and the text of each figure."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, list[str]] = {}
        self.scripts: list[str] = []
        self._in: list[str] = []
        self._path: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._path = dict(attrs).get("data-figure")
        self._in.append(tag)

    def handle_data(self, data: str) -> None:
        if self._in and self._in[-1] == "script":
            self.scripts.append(data)
        elif self._path is not None:
            self.figures.setdefault(self._path, []).append(data)

    def handle_endtag(self, _: str) -> None:
        self._path = None
        self._in.append("")


def value_at(data: Any, path: str) -> Any:
    for key in path.split("/"):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def test_the_page_shows_each_figure_of_the_json_and_the_terminal_the_same_results(world: World) -> None:
    data, text = world.explain()
    seen = Seen(text)
    assert json.loads("".join(seen.scripts)) == data
    assert len(seen.figures) > 100
    for path, texts in seen.figures.items():
        value = value_at(data, path)
        for shown in texts:
            if isinstance(value, float):
                assert float(shown) == pytest.approx(value, abs=1e-6)
            else:
                assert (
                    shown.replace(",", "").removesuffix(" ms")
                    == ("-" if value is None else str(value)).replace(",", "")
                    or "\\u" in shown
                )
    assert data["sentence"] in world.told
    assert [each["clip_id"] for each in data["results"]] == [each.clip_id for each in world.answer.results]
    served = {each.clip_id: each for each in world.answer.results}
    for each in data["results"]:
        result = served[each["clip_id"]]
        assert (each["rank"], each["control_rank"]) == (result.rank, result.initial_rank)
        assert (each["score"], each["frame_score"]) == (result.score, result.frame_score)
        if each["contributions"]:
            parts = [Decimal(part) for part in each["contributions"].values()]
            assert sum(parts) == Decimal(repr(each["score"]))
            assert all(f">{part}<" in text for part in each["contributions"].values())


def test_what_the_store_gives_now_is_compared_to_the_last_digit(world: World) -> None:
    data, _ = world.explain()
    assert (data["different"], data["served"], data["store_model_id"]) == (0, True, "colour")
    assert {each["differs"] for each in data["results"]} == {"nothing"}
    by_clip = {each["clip_id"]: each for each in data["results"]}
    curve, frame_score = by_clip["b"]["curve"], by_clip["b"]["frame_score"]
    assert curve["times_ms"] == [0, 500, 1000]
    assert max(curve["cosines"]) == frame_score
    assert curve["times_ms"][curve["cosines"].index(frame_score)] == by_clip["b"]["moment_ms"] == 500
    assert by_clip["none"]["status"] == "not_embedded"
    assert by_clip["none"]["record"]["state"] == "absent"
    imputed = by_clip["none"]
    assert sum(Decimal(part) for part in imputed["contributions"].values()) == Decimal(repr(imputed["score"]))
    assert imputed["frame_score"] is None
    assert (by_clip["deep"]["status"], by_clip["deep"]["contributions"]) == ("below_depth", None)
    assert by_clip["a"]["record"]["uploaded_at"] == "2026-11-26T00:00:00.000000Z"


def test_a_replaced_record_is_shown_beside_the_answers_figures(world: World) -> None:
    world.store.put([clip("b", 60, 70, 65, at=AT + dt.timedelta(days=1), offset=9)])
    data, text = world.explain()
    [changed] = [each for each in data["results"] if each["clip_id"] == "b"]
    assert changed["differs"] == "figures"
    assert changed["now"]["frame_score"] != changed["frame_score"]
    assert changed["now"]["moment_ms"] == 0
    assert any(sentence.startswith("The store gives other figures now: ") for sentence in changed["said"])
    assert any("is older than the record's" in sentence for sentence in changed["said"])
    assert data["different"] >= 1
    assert "other figures now" in data["sentence"]
    at = data["results"].index(changed)
    shown = Seen(text).figures
    assert shown[f"results/{at}/frame_score"] == [repr(changed["frame_score"])]
    assert shown[f"results/{at}/now/frame_score"] == [repr(changed["now"]["frame_score"])]
    assert 'class="moment-now"' in text


def test_last_digits_are_told_from_other_figures(world: World) -> None:
    def nudged(each: RerankedCandidate) -> RerankedCandidate:
        if each.frame_score is None:
            return each
        return msgspec.structs.replace(each, frame_score=float(np.nextafter(each.frame_score, 2)))

    answered = msgspec.structs.replace(world.answer, results=[*map(nudged, world.answer.results)])
    data, _ = world.explain(answered)
    assert {each["differs"] for each in data["results"] if each["frame_score"] is not None} == {"rounding"}
    assert data["different"] == 0


def test_another_model_is_named(world: World) -> None:
    data, text = world.explain(msgspec.structs.replace(world.answer, model_id="other-model"))
    assert any("made with the model other-model; this command has colour" in note for note in data["notes"])
    assert "this command has colour" in text
    assert "this command has colour" in world.told


@pytest.mark.parametrize("where", ["store", "topic"])
def test_of_a_deleted_clip_nothing_is_shown(world: World, where: str) -> None:
    if where == "store":
        world.store.delete("b", AT + dt.timedelta(hours=1), Position.of("log", 9))
    else:
        world.uploads["b"] = None
    data, text = world.explain()
    [deleted] = [each for each in data["results"] if each["clip_id"] == "b"]
    assert (deleted["status"], deleted["curve"], deleted["frame"]) == ("deleted", None, None)
    assert not [uri for uri, _ in world.fetched if uri.endswith("/1")]
    [article] = [part for part in text.split("<article")[1:] if 'data-clip="b"' in part]
    article = article.partition("</article>")[0]
    assert "<img" not in article
    assert "<svg" not in article
    assert ">deleted<" in article
    assert any("was deleted" in sentence for sentence in deleted["said"])


def test_hostile_texts_are_inert(world: World) -> None:
    answered = msgspec.structs.replace(world.answer, query=HOSTILE, engine=HOSTILE)
    data, text = world.explain(answered)
    seen = Seen(text)
    tags = {tag for tag, _ in seen.elements}
    assert not tags & {"b", "iframe", "object", "link", "base", "form"}
    assert [attributes for tag, attributes in seen.elements if tag == "script"] == [
        {"type": "application/json", "id": "data"}
    ]
    assert not [name for _, attributes in seen.elements for name in attributes if name.startswith("on")]
    assert {attributes["src"] for tag, attributes in seen.elements if tag == "img"} == {PIXEL}
    assert all(attributes.get("alt") for tag, attributes in seen.elements if tag == "img")
    assert not [tag for tag, attributes in seen.elements if tag == "th" and "scope" not in attributes]
    assert data["query"] == HOSTILE
    assert "{{ 7 * 7 }}" in text
    assert not {"\x1b", "\u202e"} & {*text, *world.told}
    [missing] = [each for each in data["results"] if each["clip_id"] == "a"]
    assert missing["frame"] == {"is_shown": False, "moment_ms": None, "origin": None, "why": f"not_found: {HOSTILE}"}


def test_without_a_model_the_answer_is_explained_from_itself(world: World) -> None:
    data, text = world.explain(model=False)
    assert data["store_model_id"] is None
    assert any("No model is named" in note for note in data["notes"])
    assert {each["curve"] for each in data["results"]} == {None}
    assert [each["contributions"] is None for each in data["results"]] == [
        each["score"] is None for each in data["results"]
    ]
    assert "<svg" not in text
    assert PIXEL in text


def test_frames_are_those_of_the_answers_moments(world: World) -> None:
    data, _ = world.explain()
    moments = {each["clip_id"]: each["moment_ms"] for each in data["results"]}
    assert ("https://cdn.example/1", moments["b"]) in world.fetched
    [absent] = [each for each in data["results"] if each["clip_id"] == "none"]
    assert absent["frame"]["why"] == "no frame of it was scored"
    world.fetched.clear()
    world.uploads.clear()
    data, _ = world.explain()
    assert world.fetched == []
    assert "there is no upload of it in" in data["results"][0]["frame"]["why"]
    data, _ = world.explain(None, "--no-frames")
    assert {each["frame"] for each in data["results"]} == {None}


def test_a_candidates_own_address_is_used_where_no_upload_is_known(world: World) -> None:
    lines = msgspec.to_builtins(world.question)
    for each in lines["results"]:
        each["uri"] = f"https://own.example/{each['clip_id'][:1]}"
    events = world.folder / "events"
    events.write_text(json.dumps(lines), encoding="utf-8")
    world.uploads.clear()
    world.explain(None, "--events", str(events))
    assert ("https://own.example/b", 500) in world.fetched


def now(world: World, *arguments: str) -> Any:
    given = ["--query", "a query", "--uploads", uploads_file(world.folder / "u", world.uploads), "--json", "-"]
    return json.loads(world.run(*given, *arguments))


def test_a_text_is_reranked_now_as_the_service_would(world: World) -> None:
    given = world.folder / "candidates"
    given.write_bytes(JSON.encode(world.question))
    data = now(world, "--candidates", str(given), "--depth", "4")
    served = [(each.clip_id, each.rank, each.score, each.moment_ms) for each in world.answer.results]
    assert [(each["clip_id"], each["rank"], each["score"], each["moment_ms"]) for each in data["results"]] == served
    assert (data["served"], data["query_id"]) == (False, None)
    assert {each["now"] for each in data["results"]} == {None}
    lines = [{"clip_id": each.clip_id, "score": each.score} for each in world.question.results]
    given.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    again = now(world, "--candidates", str(given), "--depth", "4")
    assert again["results"] == data["results"]


def test_without_an_engines_scores_the_frames_alone_decide(world: World) -> None:
    data = now(world, "--clip", "a", "--clip", HOSTILE, "--clip", "b")
    assert data["method"]["alpha"] == 0
    assert run.NO_SCORES in data["notes"]
    assert [each["clip_id"] for each in data["results"]] == ["b", HOSTILE, "a"]
    assert {each["contributions"]["engine"] for each in data["results"]} <= {"0.0", "0"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "there are no candidates"),
        (b'{"results": []}', "there are no candidates"),
        (b'{"results": [{"clip_id": 7}]}', "expected an event of query.results"),
        (b'{"clip_id": "a", "score": 1}\n{"clip_id": "b"}', "1 of 2 candidates have a score"),
        (b'{"clip_id": "a"}\n{"clip_id": "a"}', "occurs more than once"),
        (b'{"clip_id": "a", "score": 1e999}', "expected a candidate"),
        (b'{"clip_id": ""}', ":1: expected a candidate"),
        (b'{"clip_id": "a"}\n\n[]', ":3: expected a candidate"),
        (b'{"clip_id": "a", "uri": ""}', ":1: expected a candidate"),
        ('{"clip_id": "' + "é" * 300 + '"}', "longer than 512 bytes"),
        (b'{"clip_id": "a"}' + b" " * 1_048_600, "bytes of candidates"),
        (b"\xff", ":1: expected a candidate"),
    ],
)
def test_candidates_of_another_form_are_refused_in_one_line(world: World, content: bytes | str, told: str) -> None:
    given = world.folder / "candidates"
    given.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = CliRunner().invoke(
        cli, ["explain", "--query", "t", "--candidates", str(given)], env={"STREAMER_MODEL": "demo"}
    )
    assert told in str(done.exception), done.output
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "exactly one of QUERY_ID and --query"),
        (("q", "--query", "t"), "exactly one of QUERY_ID and --query"),
        (("--query", "t"), "give --candidates"),
        (("--query", "t", "--clip", "a", "--candidates-of", "q"), "give --candidates"),
        (("q", "--clip", "a"), "give --candidates"),
        (("--query", "t", "--clip", "a", "--answers", "-"), "--answers needs QUERY_ID"),
        (("q", "--since", "yesterday"), "--since"),
        (("q", "--top", "0"), "--top"),
        (("q", "--timeout", "0"), "--timeout"),
    ],
)
def test_options_that_contradict_each_other_are_refused(world: World, arguments: tuple[str, ...], told: str) -> None:
    assert told in world.run(*arguments, code=2)


def test_an_unknown_query_and_a_blank_text_are_refused(world: World) -> None:
    answers = write(world.folder / "answers", [world.answer])
    done = CliRunner().invoke(cli, ["explain", "other", "--answers", answers])
    assert "there is no answer to query 'other'" in str(done.exception)
    done = CliRunner().invoke(
        cli, ["explain", "--query", " ", "--clip", "a"], env={"STREAMER_MODEL": "demo", "STREAMER_STORE": world.url}
    )
    assert str(done.exception).startswith("--query: ")


def test_a_curve_is_drawn_within_its_picture() -> None:
    result = {"curve": {"times_ms": [0, 500, 1000], "cosines": [0.1, 0.4, 0.2]}, "moment_ms": 500, "now": None}
    drawn = page.plot(result)
    assert drawn is not None
    assert drawn.moment is not None
    assert (drawn.moment.at, drawn.moment.text) == (drawn.dots[1][0], "0.5 s")
    assert min(drawn.dots, key=lambda dot: dot[1]) == drawn.dots[1]
    assert all(0 < across < page.WIDTH and 0 < up < page.HEIGHT for across, up in drawn.dots)
    single = page.plot({"curve": {"times_ms": [0], "cosines": [0.5]}, "moment_ms": 0, "now": {"moment_ms": 0}})
    assert single is not None
    assert (len(single.dots), single.moment_now) == (1, None)
    assert page.plot({"curve": None}) is None


def test_a_status_of_the_answer_is_kept_beside_the_one_shown(world: World) -> None:
    world.uploads["b"] = None
    data, _ = world.explain()
    [deleted] = [each for each in data["results"] if each["clip_id"] == "b"]
    assert deleted["answered_status"] == Status.RERANKED
