"""The results of ``streamer probe``: as JSON, as a table for a terminal, as an HTML page, and for the documentation."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from streamer.evaluation import plots
from streamer.evaluation.accuracy import CONFIDENCE, SIGNIFICANT, accuracy, change, says
from streamer.evaluation.comparison import holm
from streamer.evaluation.page import Advice, Headline, Page, Section, Table, Text, show
from streamer.evaluation.report import terminal_table
from streamer.synthetic.probes import CONTROL, KINDS, finds
from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.table import Table as TerminalTable

    from streamer.evaluation.accuracy import Accuracy, Change
    from streamer.evaluation.page import Picture, Shown
    from streamer.synthetic.probes import Scored

Data = dict[str, Any]

CHANCE = 0.5
PLAIN, AS_IT_IS, RULE = "without the word", "as it is", "by the rule"
"""The ways of asking: the first caption, which has no negation; the second one; the second one by the negation rule."""
_COLUMNS = ("probe", "query", "accuracy", "95 % CI from", "to", "p, corrected", "says")
_TEXTS = 2
_NOTE = (
    "Accuracy is how often the query finds the right one of two clips, which differ in nothing but what is probed; "
    "guessing reaches 0.5. The interval is exact (Clopper and Pearson). p is the binomial test's, two-sided, and "
    "corrected for all tests of the table and of the rule (Holm)."
)
_RULE_NOTE = (
    "The rule subtracts the vector of the negated part, with a weight of {}, from that of the rest. p is McNemar's, of "
    "the probes on which it differs from the query as it is."
)


def data(scored: Sequence[Scored], *, model_id: str, seed: int, weight: float) -> Data:
    """Return all results as JSON, numbers unrounded. Raises MeasureError if scipy is not installed."""
    rows: list[tuple[str, str, str, Accuracy]] = []
    changes: dict[str, Change] = {}
    for kind in KINDS:
        of = [each for each in scored if each.probe.kind == kind]
        second = [finds(each.scores[1], 1, number) for number, each in enumerate(of)]
        first_example, second_example = of[0].probe.captions
        by_rule = [each.ruled is not None and finds(each.ruled, 1, number) for number, each in enumerate(of)]
        has_rule = any(each.ruled is not None for each in of)
        if has_rule:
            first = [finds(each.scores[0], 0, number) for number, each in enumerate(of)]
            rows.append((kind, PLAIN, first_example, accuracy(sum(first), len(of), CHANCE)))
        rows.append((kind, AS_IT_IS, second_example, accuracy(sum(second), len(of), CHANCE)))
        if has_rule:
            rows.append((kind, RULE, second_example, accuracy(sum(by_rule), len(of), CHANCE)))
            both = list(zip(second, by_rule, strict=True))
            changes[kind] = change(both.count((False, True)), both.count((True, False)))
    p_values = {(kind, way): measured.p for kind, way, _, measured in rows}
    corrected = holm(p_values | {(kind, ""): each.p for kind, each in changes.items()})
    found: Data = {
        "model_id": model_id,
        "seed": seed,
        "pairs": rows[0][3].of,
        "weight": weight,
        "confidence": CONFIDENCE,
        "probes": [
            {
                "probe": kind,
                "query": way,
                "example": example,
                **asdict(measured),
                "holm_p": corrected[kind, way],
                "says": says(measured, corrected[kind, way]),
            }
            for kind, way, example, measured in rows
        ],
        "rule": {kind: {**asdict(each), "holm_p": corrected[kind, ""]} for kind, each in changes.items()},
    }
    return {"sentence": _sentence(found), "advice": list(_advice(found)), **found}


def _sentence(found: Data) -> str:
    """Say which kinds of query the model understands as they are."""
    kinds = {
        said: [each["probe"] for each in found["probes"] if each["query"] == AS_IT_IS and each["says"] == said]
        for said in _TONES
    }
    understood, reversed_, guessed = kinds["above chance"], kinds["below chance"], kinds["not told from chance"]
    parts = [f"understands {', '.join(understood)}" if understood else "understands none of the kinds that are probed"]
    if guessed:
        parts.append(f"does no better than guessing on {', '.join(guessed)}")
    if reversed_:
        parts.append(f"finds the opposite of what is asked for on {', '.join(reversed_)}")
    return f"The model {', '.join(parts)} ({found['pairs']:,} probes of each kind)."


def _advice(found: Data) -> Iterator[str]:
    """Yield what to do about each kind of query that the model does not understand."""
    for each in found["probes"]:
        if each["query"] != AS_IT_IS or each["says"] == "above chance":
            continue
        kind = each["probe"]
        if kind == CONTROL:
            yield f"{kind}: a model that cannot tell objects apart should not rerank; use another one (STREAMER_MODEL)."
        elif kind in found["rule"]:
            changed = found["rule"][kind]
            better = changed["holm_p"] < SIGNIFICANT and changed["gained"] > changed["lost"]
            effect = "the rule of negation finds more" if better else "the rule of negation is not shown to find more"
            yield f"{kind}: queries with this word may bring up what they exclude; {effect}."
        else:
            yield f"{kind}: a higher STREAMER_ALPHA leaves more of such queries' order to the engine."


def terminal(found: Data) -> Iterator[TerminalTable]:
    """Make the table of accuracies, and one of what the rule changes."""
    table = terminal_table(f"What {found['model_id']} understands", _COLUMNS, texts=_TEXTS)
    for row in _rows(found):
        table.add_row(*(plain(str(cell)) for cell in row))
    yield table
    table = terminal_table(f"What the negation rule changes, weight {found['weight']:g}", _RULE_COLUMNS)
    for changed in _rule_rows(found):
        table.add_row(*(plain(str(cell)) for cell in changed))
    yield table


def page(found: Data) -> Page:
    """Make the page."""
    numeric = frozenset(range(_TEXTS, len(_COLUMNS) - 1))
    headline = [
        Headline(show(found, "probes", number, "accuracy", form=".2f"), each["probe"], _TONES[each["says"]])
        for number, each in enumerate(found["probes"])
        if each["query"] == AS_IT_IS
    ]
    examples = Table(
        "A query of each kind",
        ["probe", "query", "example"],
        [
            [*(show(found, "probes", number, key) for key in ("probe", "query", "example"))]
            for number in range(len(found["probes"]))
        ],
    )
    rule = Table(
        "What the negation rule changes",
        _RULE_COLUMNS,
        list(_rule_rows(found)),
        frozenset(range(1, len(_RULE_COLUMNS))),
    )
    advice = Advice([show(found, "advice", number) for number in range(len(found["advice"]))])
    return Page(
        title="What the model understands",
        verdict=show(found, "sentence"),
        lead=f"{found['model_id']}, asked to choose between two clips",
        data=found,
        headline=headline,
        sections=[
            *([Section("What to do", [advice])] if found["advice"] else []),
            Section(
                "Accuracy against chance",
                [
                    _picture(found),
                    Table("Accuracy of each kind of query", _COLUMNS, list(_rows(found)), numeric),
                    Text(_NOTE),
                ],
            ),
            Section("What the negation rule changes", [rule, Text(_RULE_NOTE.format(f"{found['weight']:g}"))]),
            Section("Examples", [examples]),
        ],
    )


def markdown(found: Data) -> str:
    """Return the table of accuracies for the documentation."""
    lines = ["| probe | query | example | accuracy | 95 % interval | |", "| --- | --- | --- | --- | --- | --- |"]
    for each in found["probes"]:
        interval = f"{100 * each['low']:.0f} to {100 * each['high']:.0f} %"
        lines.append(
            f"| {each['probe']} | {each['query']} | {each['example']} | {100 * each['accuracy']:.0f} % | {interval} "
            f"| {each['says']} |"
        )
    measured = (
        f"{found['pairs']} probes of each kind, seed {found['seed']}, model `{found['model_id']}`; the rule's weight "
        f"is {found['weight']:g}."
    )
    return "\n".join([*lines, "", measured]) + "\n"


_TONES = {"above chance": "gain", "below chance": "loss", "not told from chance": ""}
_RULE_COLUMNS = ("probe", "now right", "now wrong", "p, corrected")


def _rows(found: Data) -> Iterator[list[Shown | str]]:
    for number in range(len(found["probes"])):
        at = ("probes", number)
        yield [
            show(found, *at, "probe"),
            show(found, *at, "query"),
            *(show(found, *at, key, form=".3f") for key in ("accuracy", "low", "high")),
            show(found, *at, "holm_p", form=".2g"),
            show(found, *at, "says"),
        ]


def _rule_rows(found: Data) -> Iterator[list[Shown | str]]:
    for kind in found["rule"]:
        at = ("rule", kind)
        yield [kind, show(found, *at, "gained"), show(found, *at, "lost"), show(found, *at, "holm_p", form=".2g")]


def _picture(found: Data) -> Picture:
    rows: Sequence[Mapping[str, Any]] = found["probes"]
    names = [f"{each['probe']}, {each['query']}" for each in rows]

    def draw(axes: Any) -> None:  # matplotlib's, which only the evaluation knows
        for number, each in enumerate(rows):
            colour = {"above chance": plots.NEW, "below chance": plots.LOSS}.get(each["says"], plots.OLD)
            axes.plot([each["low"], each["high"]], [number, number], color=colour, linewidth=2)
            axes.plot([each["accuracy"]], [number], color=colour, marker="o", gid=f"accuracy-{number}")
        axes.axvline(CHANCE, color=plots.LINE, linewidth=0.8)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("accuracy, with its 95 % confidence interval")
        axes.set_ylabel("kind of query")

    caption = "How often each kind of query finds its clip, with the 95 % interval; the line is chance."
    return plots.picture(draw, name="probes", caption=caption, size=(8.5, 1.2 + 0.3 * len(names)))
