"""``streamer evaluate``: measures a run against judgments, and what reranking changed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from streamer.terminal import Terminal, echo, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamer.evaluation.measures import Evaluation

F = TypeVar("F", bound="Callable[..., Any]")
_INPUT = click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
_OUTPUT = click.File("w", encoding="utf-8", lazy=True)
_MEASURES = {
    "infAP": "infAP",
    "AP": "AP",
    "nDCG": "nDCG@k",
    "P": "P@k",
    "R": "R@k (recall)",
    "RR": "RR (MRR)",
    "Success": "Success@k (hit rate)",
    "infNDCG": "infNDCG",
    "MdR": "MdR (median rank)",
    "MnR": "MnR (mean rank)",
}
"""How the help shows each measure."""
_TOPICS_NAMED = 5
"""The largest number of topics named in a warning."""


def measures_option(more: str = "", *, without: Sequence[str] = ()) -> Callable[[F], F]:
    """Make the option ``--measures``; ``more`` is added to its help, and the measures ``without`` are refused."""

    def read(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:  # noqa: ARG001 - click's signature
        from streamer.evaluation.measures import MeasureError, measure_name  # noqa: PLC0415

        try:
            names = [measure_name(each) for each in value.split(",")]
        except MeasureError as error:
            raise click.BadParameter(str(error)) from None
        if refused := next((name for name in names if name in without), None):
            raise click.BadParameter(f"{refused} is measured by streamer evaluate only")
        return names

    available = ", ".join(text for name, text in _MEASURES.items() if name not in without)
    return click.option(
        "--measures",
        default="infAP",
        show_default=True,
        callback=read,
        help=f"Comma-separated: {available}. {more}".rstrip(),
    )


def paragraph_option() -> Callable[[F], F]:
    """Make the option ``--paragraph``, for ground truth with captions."""
    return click.option(
        "--paragraph",
        "is_paragraph",
        is_flag=True,
        help="In ground truth with captions, all captions of a video are one query with the video's name (DiDeMo's "
        "protocol). Otherwise each caption is a query.",
    )


@click.command(short_help="Measure TREC runs against judgments, and the gain.")
@click.option("--run", "run_path", type=_INPUT, required=True, help="TREC run of the engine (six columns).")
@click.option(
    "--qrels",
    "qrels_path",
    type=_INPUT,
    required=True,
    help="AVS judgments (columns: topic, 0, shot, stratum, rel), or ground truth as CSV, JSON or .npy.",
)
@click.option(
    "--reranked",
    "reranked_paths",
    type=_INPUT,
    multiple=True,
    help="TREC run of the same topics after reranking; may be repeated, to compare several runs with the first.",
)
@click.option("--topics", "topics_path", type=_INPUT, help="Text of each topic, shown in the page and the JSON.")
@measures_option()
@paragraph_option()
@click.option(
    "--missing-as-zero",
    is_flag=True,
    help="Count judged topics that are missing from a run as 0 in its mean (in MdR and MnR as the last place).",
)
@click.option("--json", "json_file", type=_OUTPUT, help="Write JSON to this file; - prints only the JSON.")
@click.option("--html", "html_file", type=_OUTPUT, help="Write an HTML page with plots to this file.")
def evaluate(
    run_path: Path,
    qrels_path: Path,
    reranked_paths: Sequence[Path],
    topics_path: Path | None,
    measures: Sequence[str],
    is_paragraph: bool,
    missing_as_zero: bool,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    """Measure a TREC run and, with --reranked, the gain of reranking for each topic.

    infAP and infNDCG are TRECVID's inferred measures, as NIST's sample_eval computes them. The other measures, the
    comparison and the page need the extra: cliprerank-streamer[evaluation].
    """
    import orjson  # noqa: PLC0415

    from streamer.evaluation import measures as measuring  # noqa: PLC0415
    from streamer.evaluation import report, runs_report  # noqa: PLC0415
    from streamer.evaluation.comparison import compare, compare_all  # noqa: PLC0415
    from streamer.evaluation.page import render  # noqa: PLC0415
    from streamer.evaluation.trec import joined, matched, read_qrels, read_run, read_topics  # noqa: PLC0415

    qrels = read_qrels(qrels_path, is_paragraph=is_paragraph)
    runs = [matched(read_run(path), qrels) for path in (run_path, *reranked_paths)]
    named_texts = {} if topics_path is None else read_topics(topics_path, is_paragraph=is_paragraph)
    topics = [topic for run in runs for topic in run.topics]
    texts = {topic: named_texts[name] for topic in topics if (name := joined(topic, named_texts)) in named_texts}
    names = _names([run_path, *reranked_paths])
    last = measuring.last_place(runs, qrels)
    evaluations = [measuring.evaluate(run, qrels, measures, missing_as_zero=missing_as_zero, last=last) for run in runs]
    of_ranks = last if measuring.RANKS.intersection(measures) else None
    warnings = [
        warning
        for name, each in zip(names, evaluations, strict=True)
        for warning in _warnings(name, each, missing_as_zero=missing_as_zero, last=of_ranks)
    ]
    base, *others = evaluations
    if len(others) > 1:
        named = dict(zip(names[1:], others, strict=True))
        found = runs_report.data(base, named, compare_all(base, named), texts)
        best = names.index(found["best"], 1)
        gains = found["comparisons"][found["best"]][measures[0]]["gains"]
        found["examples"] = report.examples(gains, (runs[0], runs[best]), qrels, texts, measures[0])
        page = partial(runs_report.page, found, names[0], qrels_path.name)
        tables = runs_report.terminal(found, names[0])
    else:
        reranked = next(iter(others), None)
        found = report.data(base, reranked, compare(base, reranked) if reranked else {}, texts)
        if reranked:
            gains = found["comparison"][measures[0]]["gains"]
            found["examples"] = report.examples(gains, (runs[0], runs[1]), qrels, texts, measures[0])
        page = partial(report.page, found, run_path.name, qrels_path.name, *(path.name for path in reranked_paths))
        tables = report.terminal(found)
    for warning in (*warnings, *report.doubts(found)):
        echo(f"streamer: {warning}", err=True)
    if html_file is not None:
        html_file.write(printable(render(page(warnings=warnings)), lines=True))
    if json_file is not None:
        json_file.write(printable(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n", lines=True))
    if "-" not in {file.name for file in (json_file, html_file) if file}:
        echo(found["sentence"])
        console = Terminal()
        for table in tables:
            console.print(table)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return what runs are called: the names of their files, or the paths where these are the same, or numbered."""
    for names in ([path.name for path in paths], [str(path) for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {path}" for number, path in enumerate(paths, start=1)]


def _warnings(name: str, evaluation: Evaluation, *, missing_as_zero: bool, last: int | None) -> Iterator[str]:
    """Say which topics are missing on either side; and what MdR and MnR place at rank ``last``, if they are wanted."""
    consequence = "they count as 0" if missing_as_zero else "they are left out of its mean"
    if evaluation.missing:
        yield f"{name} lacks judged topics; {consequence}: {_named(evaluation.missing)}"
    if evaluation.not_judged:
        yield f"{name} has topics without judgments; ignored: {_named(evaluation.not_judged)}"
    if evaluation.not_found and last is not None:
        found = _named(evaluation.not_found)
        yield f"{name} lists no relevant result of some topics; their rank is {last:,}: {found}"


def _named(topics: Sequence[str]) -> str:
    more = len(topics) - _TOPICS_NAMED
    return ", ".join(topics[:_TOPICS_NAMED]) + (f" and {more:,} more" if more > 0 else "")
