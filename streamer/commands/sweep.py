"""``streamer sweep``: measures many combinations of settings: the gain and the cost of each."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, get_args

import click

from streamer.commands.evaluate import measures_option, paragraph_option
from streamer.commands.flags import SettingsCommand
from streamer.events import MAX_RESULTS
from streamer.pooling import EXPECTED, MAX, parse
from streamer.scoring import IMPUTE, Missing, Normalization
from streamer.settings import Precision
from streamer.terminal import Terminal, echo, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamer.evaluation.sweep_run import Model
    from streamer.settings import SweepSettings

T = TypeVar("T")

_INPUT = click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
_OUTPUT = click.File("w", encoding="utf-8", lazy=True)
_MOST = 1_000
"""The most values in one list."""


class _List(click.ParamType[Any]):
    """Comma-separated values."""

    name = "list"

    def __init__(self, one: Callable[[str], T], expected: str) -> None:
        self._one = one
        self._expected = expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = tuple(dict.fromkeys(self._one(each.strip()) for each in value.split(",")))
        except ValueError:
            self.fail(f"{value!r}: expected {self._expected}, comma-separated", param, ctx)
        if len(found) > _MOST:
            self.fail(f"{len(found)} values, at most {_MOST} are allowed", param, ctx)
        return found


def _number(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = float(text)
        if not (math.isfinite(number) and low <= number <= high):
            raise ValueError(text)
        return number

    return read


def _depth(text: str) -> int:
    return int(_number(1, MAX_RESULTS)(str(int(text))))


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    return lambda text: choices[choices.index(text)]


@click.command(cls=SettingsCommand, uses="sweep", short_help="Measure many combinations of settings, recommend one.")
@click.option("--run", "run_file", type=_INPUT, required=True, help="TREC run of the engine.")
@click.option("--topics", "topics_file", type=_INPUT, required=True, help="Text of each topic.")
@click.option(
    "--qrels",
    "qrels_file",
    type=_INPUT,
    required=True,
    help="AVS judgments, or ground truth as CSV, JSON or .npy.",
)
@paragraph_option()
@click.option(
    "--alphas",
    type=_List(_number(0, 1), "numbers from 0 to 1"),
    default="0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1",
    show_default=True,
    help="Alphas to measure: the weight of the engine's score.",
)
@click.option(
    "--depths",
    type=_List(_depth, f"whole numbers from 1 to {MAX_RESULTS}"),
    default="20,50,100,200,500,1000",
    show_default=True,
    help="Depths to measure.",
)
@click.option(
    "--normalizations",
    type=_List(_one_of(get_args(Normalization)), " or ".join(get_args(Normalization))),
    default=",".join(get_args(Normalization)),
    show_default=True,
    help="Score normalizations to measure.",
)
@click.option(
    "--missing",
    type=_List(_one_of(get_args(Missing)), " or ".join(get_args(Missing))),
    default=IMPUTE,
    show_default=True,
    help="Treatments of candidates without a record to measure; another one than the first is recommended only where "
    "it is shown to gain more.",
)
@click.option(
    "--poolings",
    type=_List(parse, EXPECTED),
    default=MAX,
    show_default=True,
    help="Poolings of frames to measure, such as max,softmax:0.1; recommended like the treatments of missing records.",
)
@click.option(
    "--intervals",
    type=_List(_number(0.001, 3600), "seconds"),
    default=(),
    help="Also measure these frame intervals, in seconds; use multiples of the stored interval.",
)
@click.option(
    "--precisions",
    type=_List(_one_of(get_args(Precision)), " or ".join(get_args(Precision))),
    default=(),
    help="Also measure these precisions of stored vectors; none higher than the stored one.",
)
@click.option(
    "--also-model",
    "also",
    multiple=True,
    metavar="MODEL[,PRETRAINED]",
    help="Also measure this model, whose records are in the same store; may be repeated.",
)
@measures_option(
    "The first one chooses the settings; what is said of the others is corrected for their number.",
    without=("infNDCG", "MdR", "MnR"),
)
@click.option(
    "--loss",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="A topic counts as worse if its value falls by more than this.",
)
@click.option(
    "--most-losing",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Largest share of all topics, also of unseen ones, that may get worse in a conservative setting.",
)
@click.option(
    "--folds", type=click.IntRange(2, 100), default=5, show_default=True, help="Number of cross-validation folds."
)
@click.option("--json", "json_file", type=_OUTPUT, help="Write JSON to this file; - prints only the JSON.")
@click.option("--html", "html_file", type=_OUTPUT, help="Write an HTML page with plots to this file.")
def sweep(
    settings: SweepSettings,
    run_file: Path,
    topics_file: Path,
    qrels_file: Path,
    is_paragraph: bool,
    alphas: tuple[float, ...],
    depths: tuple[int, ...],
    normalizations: tuple[Normalization, ...],
    missing: tuple[Missing, ...],
    poolings: tuple[str, ...],
    intervals: tuple[float, ...],
    precisions: tuple[Precision, ...],
    also: tuple[str, ...],
    measures: Sequence[str],
    loss: float,
    most_losing: float,
    folds: int,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    """Rerank a run with every combination of settings in one pass over the stored frames, and recommend one.

    Needs the extra: cliprerank-streamer[evaluation].
    """
    settings.named_model()
    import orjson  # noqa: PLC0415

    from streamer.evaluation import sweep_examples, sweep_report, sweep_run, trec  # noqa: PLC0415
    from streamer.evaluation.choice import Caution  # noqa: PLC0415
    from streamer.evaluation.page import render  # noqa: PLC0415
    from streamer.evaluation.sweep import Grid  # noqa: PLC0415
    from streamer.evaluation.variants import Variant  # noqa: PLC0415

    variants = [
        Variant(None if interval is None else round(1000 * interval), precision)
        for interval in (None, *intervals)
        for precision in (None, *precisions)
    ]
    qrels = trec.read_qrels(qrels_file, is_paragraph=is_paragraph)
    texts = trec.read_topics(topics_file, is_paragraph=is_paragraph)
    run = trec.matched(trec.read_run(run_file), qrels)
    topics = {topic: texts[name] for topic in run.topics if (name := trec.joined(topic, texts)) in texts}
    grid = Grid(alphas, depths, normalizations, missing, poolings)
    swept = sweep_run.sweep(run, topics, qrels, _models(settings, also), variants, grid, measures)
    several = len(swept.topics) >= folds
    found = sweep_report.data(swept, Caution(loss, most_losing), folds if several else 0)
    found["examples"] = sweep_examples.examples(found, swept, run, topics, qrels, _models(settings, also))
    if html_file is not None:
        html_file.write(printable(render(sweep_report.page(found, run_file.name, qrels_file.name)), lines=True))
    if json_file is not None:
        json_file.write(printable(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n", lines=True))
    if "-" not in {file.name for file in (json_file, html_file) if file}:
        echo(found["sentence"])
        console = Terminal()
        for table in sweep_report.terminal(found):
            console.print(table)


def _models(settings: SweepSettings, also: tuple[str, ...]) -> Iterator[Model]:
    """Load the settings' model and the others, one at a time."""
    from streamer.encoders import load_model  # noqa: PLC0415
    from streamer.evaluation import material  # noqa: PLC0415
    from streamer.evaluation.sweep_run import Model  # noqa: PLC0415

    named = [(settings.named_model(), settings.pretrained)]
    named += [(name, pretrained or None) for name, _, pretrained in (each.partition(",") for each in also)]
    for model, pretrained in named:
        chosen = settings.model_copy(update={"model": model, "pretrained": pretrained})
        encoder = load_model(chosen, sides=["texts"])
        with contextlib.closing(material.open_vectors(chosen, encoder.model_id)) as store:
            yield Model(encoder.model_id, encoder, store)
