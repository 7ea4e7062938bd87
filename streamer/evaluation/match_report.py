"""The results of ``streamer match fit``: as JSON, as a table for a terminal, as an HTML page."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from streamer.evaluation import plots
from streamer.evaluation.matching import BINS, CONFIDENCE, area_under_roc, reliability
from streamer.evaluation.page import Advice, Headline, Page, Section, Table, Text, show
from streamer.evaluation.report import terminal_table
from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table as TerminalTable

    from streamer.evaluation.matching import Lists
    from streamer.evaluation.page import Picture, Shown
    from streamer.match import Bank
    from streamer.scoring import FloatArray

Data = dict[str, Any]

_COLUMNS = ("probability from", "to", "lists", "mean probability", "share relevant", "95 % CI from", "to")
_NOTE = (
    "A list counts as relevant if its candidate with the best frame score is. Probabilities are those of lists that "
    "the calibration was not fitted to (cross-validation over topics). The intervals are Wilson's. The calibration "
    "error is the mean, over the lists, of the distance between the mean probability of their bin and its share, in "
    f"{BINS} bins of the same width; with few lists in a bin, chance alone makes it large. Brier's score is the mean "
    "squared difference between probability and outcome."
)
_AREA_NOTE = (
    "The area under the ROC is the probability that a list with a relevant best candidate has a larger value than one "
    "without; 0.5 is chance. A cosine's is that of one cut-off for all queries."
)


def data(bank: Bank, *, seed: int, lists: Lists | None = None, probabilities: FloatArray | None = None) -> Data:
    """Return all results as JSON, numbers unrounded; ``probabilities`` are those of unseen ``lists``."""
    found: Data = {
        "bank": {
            "version": bank.version,
            "model_id": bank.model_id,
            "clips": len(bank.clip_ids),
            "vectors": len(bank.matrix),
            "seed": seed,
        },
        "calibration": None if bank.calibration is None else asdict(bank.calibration),
    }
    if lists is not None and probabilities is not None:
        found |= {
            "unjudged": lists.unjudged,
            "without": lists.without,
            "confidence": CONFIDENCE,
            "reliability": asdict(reliability(probabilities, lists.relevant)),
            "area_under_roc": {
                "percentile": area_under_roc(lists.percentiles, lists.relevant),
                "cosine": area_under_roc(lists.cosines, lists.relevant),
            },
        }
        found |= _meaning(found)
    return found


def _meaning(found: Data) -> Data:
    """Say what the figures of unseen lists mean, and what to do."""
    of, areas = found["reliability"], found["area_under_roc"]
    tells = of["brier"] < of["brier_of_base"]
    sentence = (
        f"On topics that it was not fitted to, the probability says {'more' if tells else 'no more'} than the share of "
        f"relevant lists alone (Brier's score {of['brier']:.3f} against {of['brier_of_base']:.3f})."
    )
    advice = []
    if not tells:
        advice.append("Leave STREAMER_MATCH unset: nothing would be gained by acting on this probability.")
    if areas["cosine"] > areas["percentile"]:
        advice.append(
            "One cut-off on the best cosine separates these lists better than the percentile does (area "
            f"{areas['cosine']:.3f} against {areas['percentile']:.3f}): compare both before you choose one."
        )
    if tells and not advice:
        advice.append("Set STREAMER_MATCH to the bank's file, and watch the distribution of streamer_match_ratio.")
    return {"sentence": sentence, "advice": advice}


def summary(found: Data) -> str:
    """Return what the bank is in one line."""
    bank = found["bank"]
    text = f"bank {bank['version']}: {bank['clips']:,} clips ({bank['vectors']:,} vectors) of {bank['model_id']}"
    if found["calibration"] is None:
        return f"{text}; matches are percentiles"
    of = found["reliability"]
    return (
        f"{text}; matches are probabilities by {of['lists']:,} judged lists ({of['relevant']:,} relevant, "
        f"{found['unjudged']:,} unjudged, {found['without']:,} without a percentile)"
    )


def terminal(found: Data) -> Iterator[TerminalTable]:
    """Make the tables of a calibrated bank."""
    table = terminal_table("Reliability on unseen topics", _COLUMNS, texts=0)
    for row in _rows(found):
        table.add_row(*(plain(str(cell)) for cell in row))
    yield table
    table = terminal_table("Figures", ("figure", "value"))
    for name, value in _figures(found):
        table.add_row(name, plain(str(value)))
    yield table


def page(found: Data, run: str, qrels: str) -> Page:
    """Make the page of a calibrated bank."""
    figures = list(_figures(found))
    bins = Table("Lists by their probability", _COLUMNS, list(_rows(found)), frozenset(range(len(_COLUMNS))))
    all_figures = Table("All figures", ("figure", "value"), [[name, value] for name, value in figures], frozenset({1}))
    return Page(
        title="How well a match is calibrated",
        verdict=show(found, "sentence"),
        lead=f"{summary(found)}; {run}, judged by {qrels}",
        data=found,
        headline=[Headline(value, name) for name, value in figures[:3]],
        sections=[
            Section("What to do", [Advice([show(found, "advice", number) for number in range(len(found["advice"]))])]),
            Section("Reliability on unseen topics", [_picture(found), bins, Text(_NOTE)]),
            Section("Figures", [all_figures, Text(_AREA_NOTE)]),
        ],
    )


def _figures(found: Data) -> Iterator[tuple[str, Shown]]:
    yield "calibration error", show(found, "reliability", "calibration_error", form=".3f")
    yield "Brier's score", show(found, "reliability", "brier", form=".3f")
    yield "area under the ROC, percentile", show(found, "area_under_roc", "percentile", form=".3f")
    yield "area under the ROC, best cosine", show(found, "area_under_roc", "cosine", form=".3f")
    yield "Brier's score of the share of relevant ones", show(found, "reliability", "brier_of_base", form=".3f")
    yield "judged lists", show(found, "reliability", "lists")
    yield "relevant", show(found, "reliability", "relevant")


def _rows(found: Data) -> Iterator[list[Shown | str]]:
    for number in range(len(found["reliability"]["bins"])):
        at = ("reliability", "bins", number)
        yield [
            show(found, *at, "low", form=".1f"),
            show(found, *at, "high", form=".1f"),
            show(found, *at, "lists"),
            *(show(found, *at, key, form=".3f") for key in ("probability", "share", "share_low", "share_high")),
        ]


def _picture(found: Data) -> Picture:
    bins = found["reliability"]["bins"]

    def draw(axes: Any) -> None:  # matplotlib's, which only the evaluation knows
        axes.plot([0, 1], [0, 1], color=plots.OLD, linewidth=0.8)
        for number, each in enumerate(bins):
            x = each["probability"]
            axes.plot([x, x], [each["share_low"], each["share_high"]], color=plots.NEW, linewidth=1.5)
            axes.plot([x], [each["share"]], color=plots.NEW, marker="o", gid=f"bin-{number}")
            axes.annotate(f"{each['lists']:,}", (x, each["share"]), (6, -3), textcoords="offset points", fontsize=8)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("mean probability of a bin")
        axes.set_ylabel("share relevant")

    caption = (
        "The share of relevant lists against their probability, with Wilson's 95 % intervals and the numbers of lists; "
        "on the line, both agree."
    )
    return plots.picture(draw, name="reliability", caption=caption, size=(4.8, 4.2))
