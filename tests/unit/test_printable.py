"""What comes from outside and is printed: a terminal obeys none of it, and no line is forged."""

from __future__ import annotations

import ast
import datetime as dt
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamer import cli
from streamer.codec import JSON
from streamer.demo.report import Judged
from streamer.demo.show import before_and_after, figures
from streamer.evaluation import replay as replays
from streamer.evaluation import sweep_run
from streamer.evaluation.variants import Variant
from streamer.events import QueryReranked, Reason, RerankedCandidate, Status
from streamer.kafka.admin import topics
from streamer.kafka.dead_letters import dead_letter
from streamer.kafka.dlq import letters, redrive
from streamer.kafka.dlq.letters import State, classify
from streamer.kafka.records import Record
from streamer.match.bank_file import MAX_MODEL_CHARS
from streamer.method import Method
from streamer.printable import printable
from streamer.settings import SettingsError
from streamer.store import Clip, Position, StoreError, open_store
from streamer.synthetic import benchmark
from streamer.terminal import Terminal, plain
from streamer.top import watch
from tests.support.banks import bank
from tests.support.escapes import FORGED, forged, hostile, main, raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
HOSTILE = hostile(500)
UTF_8 = hostile(500, surrogates=False)
STREAMER = Path(cli.__file__).parent


@given(st.text())
def test_escaping_leaves_nothing_that_a_terminal_obeys_and_json_as_it_was(text: str) -> None:
    assert raw(printable(text)) == set()
    assert "\n" not in printable(text)
    encodable = text.encode(errors="replace").decode()
    assert json.loads(printable(orjson.dumps({"t": encodable}).decode())) == {"t": encodable}


def test_text_of_any_language_is_shown_as_it_is() -> None:
    assert printable("赤い\u3000自転車\nvélo\t😀", lines=True) == "赤い\u3000自転車\nvélo\t😀"
    assert printable("\x1b[2J\x9b\x7f\u202e\n") == "\\u001b[2J\\u009b\\u007f\\u202e\\n"


def test_the_texts_of_these_tests_are_500_and_would_do_harm() -> None:
    assert len(set(HOSTILE)) == len(set(UTF_8)) == 500
    assert len(set().union(*map(raw, HOSTILE))) > 80
    assert sum(FORGED in text for text in HOSTILE) > 20


# -- the terminal --------------------------------------------------------------------------------------------


def test_a_console_shows_strings_texts_and_cells_alike(capsys: pytest.CaptureFixture[str]) -> None:
    console = Terminal(width=200)
    for text in HOSTILE:
        console.print(plain(text))
        console.print(text, end="")
        console.print(f"{text!s} [b]no markup", highlight=False)
    console.print(figures({text: text for text in HOSTILE}))
    printed = capsys.readouterr().out
    assert raw(printed) == set()
    assert "[b]no markup" in printed


def test_nothing_but_the_terminal_prints() -> None:
    """Whatever prints in another way would print what it was given as it is."""
    for path in STREAMER.rglob("*.py"):
        if path.name in {"terminal.py", "topic_files.py"}:  # the latter is a developer's command without arguments
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {
                    "print", "click.echo", "click.secho", "Console", "Text.from_markup", "Text.from_ansi",
                    "sys.stdout.write", "sys.stderr.write", "traceback.print_exc",
                }, f"{path.name}:{node.lineno}"  # fmt: skip


# -- every command -------------------------------------------------------------------------------------------


def candidate(clip_id: str) -> RerankedCandidate:
    return RerankedCandidate(clip_id, 1, 1.0, 1, 1.0, 0.5, 500, Status.RERANKED)


def answer(text: str) -> QueryReranked:
    return QueryReranked(
        query_id=text, query=text, engine=text, issued_at=AT, reranked_at=AT, model_id=text, alpha=0.4, depth=100,
        normalization="minmax", degraded=None, results=[candidate(text)],
    )  # fmt: skip


def topics_apply(_: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    changes = [topics.Change(text, topics.Outcome.REFUSED, text) for text in HOSTILE]
    patch.setattr(topics, "apply", lambda *_: changes)
    return [["topics", "apply"]]


def topics_check(_: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    differences = [topics.Difference(text, topics.Aspect.CONFIG, text, text, text) for text in HOSTILE]
    patch.setattr(topics, "check", lambda *_: differences)
    patch.setattr(topics, "copartitioning_warnings", lambda *_: HOSTILE)
    return [["topics", "check"]]


def acls(_: Path, __: pytest.MonkeyPatch) -> list[list[str]]:
    return [["acls", "embed", "--principal", text] for text in HOSTILE[:60]] + [["acls", text] for text in HOSTILE]


class Letters:
    """A dead-letter topic of hostile letters."""

    name = HOSTILE[1]

    def __init__(self, *_: object) -> None:
        pass

    def spans(self) -> list[object]:
        return []

    def close(self) -> None:
        pass

    def letters(self, _: object) -> Iterator[letters.DeadLetter]:
        for number, text in enumerate(UTF_8):
            raw_text = text.encode()
            value = [raw_text, orjson.dumps({text: [text]}), None, b"\xff" + raw_text][number % 4]
            record = Record(
                "query.results", 0, number, raw_text, value, ((text, raw_text), (text, None)), AT, group=text
            )
            failed = dead_letter(record, Reason.NOT_JSON, text, attempts=1)
            headers = [(name, raw_text if name == "dlq.reason" else each) for name, each in failed.headers]
            stored = Record(failed.topic, 0, number, failed.key, failed.value, tuple(headers), AT)
            yield classify(stored, "query.results")


def dlq(*arguments: str) -> Any:
    def case(_: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
        patch.setattr(letters, "DeadLetterTopic", Letters)
        done = redrive.Report(Counter(UTF_8), Counter(State), Counter(UTF_8))
        patch.setattr(redrive, "redrive", lambda *_, **__: done)
        commands = [["dlq", *arguments, "query.results"], ["dlq", *arguments, "query.results", "--json"]]
        return [[*each, "--limit", "1000"] for each in commands]

    return case


def stored(folder: Path, patch: pytest.MonkeyPatch) -> str:
    url = f"lmdb:{folder / 'store'}"
    if not (folder / "store").exists():
        for model in (UTF_8[1], UTF_8[-1]):
            opened = open_store(url, model_id=model, dim=4)
            vectors, times = np.eye(1, 4, dtype=np.float32), np.array([0], np.uint32)
            opened.put([Clip(text, AT, Position.of("log", 1), 1500, vectors, times) for text in UTF_8])
            opened.close()
    patch.setenv("STREAMER_STORE", url)
    return url


def store_stats(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    stored(folder, patch)
    return [["store", "stats"]]


def store_get(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    stored(folder, patch)
    return [["store", "get", "--", text] for text in UTF_8[::5]] + [["store", "get", "--", f"no {UTF_8[2]}"]]


def store_verify(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    stored(folder, patch)
    other = f"lmdb:{folder / 'other'}"
    open_store(other, model_id="m", dim=4).close()
    return [["store", "verify"], ["store", "verify", "--json"], ["store", "verify", "--against", other]]


def store_copy(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    url = stored(folder, patch)
    return [["store", "copy", url, f"lmdb:{folder / name}", *more] for name, more in (("a", []), ("b", ["--json"]))]


def store_compact(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    stored(folder, patch)
    return [["store", "compact", "--to", str(folder / "compact")]]


def store_drop_model(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    stored(folder, patch)
    return [
        ["store", "drop-model", "--", UTF_8[3]],
        ["store", "drop-model", "--dry-run", "--", UTF_8[1]],
        ["store", "drop-model", "--", UTF_8[1]],
        ["store", "drop-model", "--yes", "--", UTF_8[1]],
    ]


def top(_: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    def frame() -> watch.Frame:
        load_of = watch.Load(*[1.0] * len(watch.Load.__dataclass_fields__))
        instances = [watch.Instance(text, problem=text) for text in HOSTILE[:250]]
        instances += [
            watch.Instance(text, command=text, group=text, not_ready=(text,), lags={1: 1.0}, load=load_of)
            for text in HOSTILE[250:]
        ]
        answers = [watch.Answer(answer(text), AT) for text in HOSTILE]
        # As a later version might write.
        degraded = [watch.Answer(replace(answer(text), degraded=text), AT) for text in HOSTILE]
        dead = [watch.Letter(text, text, text, text, text, AT) for text in HOSTILE]
        return watch.Frame(
            AT, 1.0, instances, {(HOSTILE[1], HOSTILE[2]): load_of}, answers + degraded, dead, HOSTILE[0]
        )

    fake = SimpleNamespace(frame=frame, close=lambda: None, interval=1.0)
    patch.setattr(watch, "Watch", lambda *_, **__: fake)
    return [["top", "--once", "--interval", "0.2"]]


def words() -> list[str]:
    """Return hostile text without blanks, which separate the fields of TREC's files, and without what those refuse."""
    return list(dict.fromkeys(word for text in UTF_8 if (word := "".join(text.split()).replace("\0", ""))))


def evaluate(folder: Path, _: pytest.MonkeyPatch) -> list[list[str]]:
    run, qrels, other = folder / "run", folder / "qrels", folder / "other"
    run.write_text("".join(f"{word} Q0 {word} 1 1.0 {word}\n" for word in words()), encoding="utf-8", newline="\n")
    qrels.write_text("".join(f"{word} 0 {word} 1 1\n" for word in words()[::2]), encoding="utf-8", newline="\n")
    other.write_text(f"one Q0 {words()[5]}\n", encoding="utf-8")
    base = ["evaluate", "--run", str(run), "--qrels", str(qrels)]
    reranked = [*base, "--reranked", str(run)]
    bad = ["evaluate", "--run", str(other), "--qrels", str(qrels)]
    return [base, reranked, [*reranked, "--json", "-"], [*base, "--html", "-"], bad]


def pilot(folder: Path, _: pytest.MonkeyPatch) -> list[list[str]]:
    answers, bad = folder / "answers.jsonl", folder / "bad.jsonl"
    answers.write_bytes(b"\n".join(JSON.encode(answer(text)) for text in UTF_8 if text.strip()))
    bad.write_text(f'{{"{FORGED}": "\x1b[2J\u202e"}}\n', encoding="utf-8")
    given = ["pilot", "--answers", str(answers)]
    return [given, [*given, "--json", "-"], ["pilot", "--answers", str(bad)]]


def audit(folder: Path, _: pytest.MonkeyPatch) -> list[list[str]]:
    answers, sides, texts = folder / "answers.jsonl", folder / "sides", [text for text in UTF_8 if text.strip()]
    answers.write_bytes(b"\n".join(JSON.encode(replace(answer(text), model_id="m")) for text in texts))
    sides.write_text("\n".join(json.dumps({"clip_id": text, "attributes": {"side": text}}) for text in texts))
    given = ["audit", "--answers", str(answers), "--attributes", str(sides), "--attribute"]
    return [[*given, "side"], [*given, "side", "--json", "-"], [*given, FORGED]]


def match_fit(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    patch.setattr("streamer.encoders.load_model", lambda *_, **__: SimpleNamespace(model_id="".join(UTF_8)))
    patch.setattr("streamer.evaluation.material.open_vectors", lambda *_: SimpleNamespace(close=lambda: None))
    patch.setattr(
        "streamer.evaluation.matching.draw_bank", lambda _, model_id, **__: bank(model_id=model_id[:MAX_MODEL_CHARS])
    )
    given = ["match", "fit", "--model", "demo", "--out", str(folder / "bank")]
    return [given, [*given, "--json", "-"]]


def explain(folder: Path, _: pytest.MonkeyPatch) -> list[list[str]]:
    commands, bad = [], folder / "bad"
    for number, text in enumerate([text for text in UTF_8 if text.strip()][:20]):
        answers, uploads = folder / f"{number}.answers", folder / f"{number}.uploads"
        answers.write_bytes(JSON.encode(answer(text)))
        uploads.write_text(json.dumps({"clip_id": text, "uri": text}), encoding="utf-8")
        given = ["explain", "--answers", str(answers), "--uploads", str(uploads)]
        commands += [[*given, *more, "--", text] for more in ([], ["--json", "-"], ["--html", "-"])]
    bad.write_text(f'{{"{FORGED}": "\x1b[2J\u202e"}}\n', encoding="utf-8")
    return [*commands, *(["explain", FORGED, f"--{option}", str(bad)] for option in ("answers", "uploads"))]


def replay(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    patch.setattr(replays, "through_kafka", lambda _, asked, **__: asked)
    commands = []
    for number, text in enumerate(UTF_8[::10]):
        bad = folder / f"{number}.jsonl"
        bad.write_text(json.dumps({"query_id": text, text: text, "results": [text]}, ensure_ascii=False) + "\n")
        commands.append(
            ["replay", "--events", str(bad), "--through-kafka", "--out", str(folder / "out"), "--tag", text]
        )
    return commands


def sweep(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    for name in ("run", "qrels", "topics"):
        (folder / name).write_text({"run": "1 Q0 a 1 1.0 x\n", "qrels": "1 0 a 1 1\n", "topics": "1\ttext\n"}[name])
    columns = tuple(
        sweep_run.Column(
            text, Variant(None, None), Method(alpha=0.4, depth=depth, normalization="minmax"), 1.0, 1.0, 1.0
        )
        for depth, text in enumerate(HOSTILE[:100], start=1)
    )
    found = sweep_run.Sweep(("infAP",), tuple(HOSTILE[:10]), np.zeros((1, 10)), columns, np.ones((1, 10, len(columns))))
    patch.setattr(sweep_run, "sweep", lambda *_: found)
    patch.setattr("streamer.evaluation.sweep_examples.examples", lambda *_: [])
    given = [
        f"--{option}={folder / name}" for option, name in (("run", "run"), ("qrels", "qrels"), ("topics", "topics"))
    ]
    return [["sweep", "--model", "demo", *given], ["sweep", "--model", "demo", *given, "--json", "-"]]


def synthetic(folder: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    patch.setattr(benchmark, "run", lambda *_: None)
    patch.setattr(benchmark, "markdown", lambda _: "".join(UTF_8).replace("\n", " "))
    (folder / "out").mkdir()
    return [["benchmark", "--out", str(folder / "out")]]


def probe(_: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    patch.setattr("streamer.encoders.load_model", lambda *_: SimpleNamespace(model_id="".join(HOSTILE)))
    patch.setattr("streamer.synthetic.probes.score", lambda *_: [])
    patch.setattr(
        "streamer.synthetic.probe_report.data",
        lambda _, model_id, **more: {
            "model_id": model_id,
            "probes": [],
            "rule": {},
            "advice": [],
            "sentence": "",
            **more,
        },
    )
    return [["probe", "--model", "demo"], ["probe", "--model", "demo", "--json", "-"]]


def demo(_: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
    def run(*_: object, **__: object) -> None:
        console = Terminal()
        for text in HOSTILE:
            console.print(before_and_after(Judged(answer(text), frozenset({text}), 0.5, 0.5)))

    patch.setattr("streamer.demo.run.run", run)
    return [["demo"]]


def service(run: str, *arguments: str) -> Any:
    def case(_: Path, patch: pytest.MonkeyPatch) -> list[list[str]]:
        texts = iter(HOSTILE)

        def refuse(*_: object, **__: object) -> None:
            text = next(texts)
            raise [SettingsError, StoreError, ValueError][len(text) % 3](text)

        patch.setattr(f"streamer.{run}", refuse)
        return [[*arguments]] * len(HOSTILE)

    return case


COMMANDS: dict[str, Callable[[Path, pytest.MonkeyPatch], list[list[str]]]] = {
    "acls": acls,
    "audit": audit,
    "benchmark": synthetic,
    "demo": demo,
    "dlq list": dlq("list"),
    "dlq list --records": dlq("list", "--records"),
    "dlq redrive": dlq("redrive"),
    "dlq show": dlq("show"),
    "embed": service("service.run_embedder", "embed"),
    "evaluate": evaluate,
    "match fit": match_fit,
    "explain": explain,
    "exposure": service("evaluation.audit.following.follow", "exposure", "--attribute", "side"),
    "pilot": pilot,
    "probe": probe,
    "replay": replay,
    "rerank": service("service.run_reranker", "rerank"),
    "store compact": store_compact,
    "store copy": store_copy,
    "store drop-model": store_drop_model,
    "store get": store_get,
    "store stats": store_stats,
    "store verify": store_verify,
    "sweep": sweep,
    "top": top,
    "topics apply": topics_apply,
    "topics check": topics_check,
}
NOTHING_FROM_OUTSIDE = {"broker", "completion"}
FIGURES_ONLY = {"pilot", "replay", "store compact", "store copy"}
"""These read text from outside, but what they print quotes none of it today."""


def test_each_command_is_here() -> None:
    def names(group: click.Group, before: str = "") -> set[str]:
        return {
            name
            for each, command in group.commands.items()
            for name in (names(command, f"{each} ") if isinstance(command, click.Group) else {before + each})
        }

    assert names(cli.cli) == {name.partition(" --")[0] for name in COMMANDS} | NOTHING_FROM_OUTSIDE


@pytest.mark.parametrize("name", COMMANDS)
def test_no_byte_from_outside_comes_out_raw(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    escaped = 0
    for arguments in COMMANDS[name](tmp_path, monkeypatch):
        main(arguments, monkeypatch)
        shown = "".join(capsys.readouterr())
        assert (raw(shown), forged(shown)) == (set(), []), arguments
        escaped += shown.count("\\u")
    assert escaped or name in FIGURES_ONLY


@pytest.mark.parametrize("kind", [StoreError, SettingsError, ValueError])
def test_no_line_of_an_error_looks_like_one_of_ours(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> None:
        raise kind(f"a log ends with\n{FORGED}")

    monkeypatch.setattr("streamer.service.run_embedder", run)
    main(["embed"], monkeypatch)
    shown = capsys.readouterr().err
    assert FORGED in shown
    assert not forged(shown)
