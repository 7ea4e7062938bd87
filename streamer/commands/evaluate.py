"""``streamer evaluate``: measures a run against judgments, and what reranking changed."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from streamer.terminal import Terminal, echo, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamer.evaluation.measures import Evaluation

F = TypeVar("F", bound="Callable[..., Any]")
_INPUT = click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
_OUTPUT = click.File("w", encoding="utf-8", lazy=True)
_TOPICS_NAMED = 5
"""The largest number of topics named in a warning."""


def _measures(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:  # noqa: ARG001 - click's signature
    from streamer.evaluation.measures import MeasureError, measure_name  # noqa: PLC0415

    try:
        return [measure_name(each) for each in value.split(",")]
    except MeasureError as error:
        raise click.BadParameter(str(error)) from None


def measures_option(more: str = "") -> Callable[[F], F]:
    """Make the option ``--measures``; ``more`` is added to its help."""
    return click.option(
        "--measures",
        default="infAP",
        show_default=True,
        callback=_measures,
        help=f"Comma-separated: infAP, AP, nDCG@k, P@k, R@k (recall), RR (MRR), Success@k (hit rate). {more}".rstrip(),
    )


@click.command(short_help="Measure TREC runs against judgments, and the gain.")
@click.option("--run", "run_path", type=_INPUT, required=True, help="TREC run of the engine (six columns).")
@click.option(
    "--qrels", "qrels_path", type=_INPUT, required=True, help="AVS judgments (columns: topic, 0, shot, stratum, rel)."
)
@click.option("--reranked", "reranked_path", type=_INPUT, help="TREC run of the same topics after reranking.")
@measures_option()
@click.option(
    "--missing-as-zero", is_flag=True, help="Count judged topics that are missing from a run as 0 in its mean."
)
@click.option("--json", "json_file", type=_OUTPUT, help="Write JSON to this file; - prints only the JSON.")
@click.option("--html", "html_file", type=_OUTPUT, help="Write an HTML page with plots to this file.")
def evaluate(
    run_path: Path,
    qrels_path: Path,
    reranked_path: Path | None,
    measures: Sequence[str],
    missing_as_zero: bool,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    """Measure a TREC run and, with --reranked, the gain of reranking for each topic.

    infAP is TRECVID's extended inferred average precision, as NIST's sample_eval computes it. The other measures, the
    comparison and the page need the extra: cliprerank-streamer[evaluation].
    """
    import orjson  # noqa: PLC0415

    from streamer.evaluation import measures as measuring  # noqa: PLC0415
    from streamer.evaluation import report  # noqa: PLC0415
    from streamer.evaluation.comparison import compare  # noqa: PLC0415
    from streamer.evaluation.page import render  # noqa: PLC0415
    from streamer.evaluation.trec import read_qrels, read_run, renamed  # noqa: PLC0415

    qrels = read_qrels(qrels_path)
    warnings: list[str] = []

    def measured(path: Path) -> Evaluation:
        run = renamed(read_run(path), qrels.topics)
        evaluation = measuring.evaluate(run, qrels, measures, missing_as_zero=missing_as_zero)
        consequence = "they count as 0" if missing_as_zero else "they are left out of its mean"
        if evaluation.missing:
            warnings.append(f"{path.name} lacks judged topics; {consequence}: {_named(evaluation.missing)}")
        if evaluation.not_judged:
            warnings.append(f"{path.name} has topics without judgments; ignored: {_named(evaluation.not_judged)}")
        return evaluation

    base = measured(run_path)
    reranked = measured(reranked_path) if reranked_path else None
    found = report.data(base, reranked, compare(base, reranked) if reranked else {})
    for warning in (*warnings, *report.doubts(found)):
        echo(f"streamer: {warning}", err=True)
    if html_file is not None:
        names = [path.name for path in (run_path, qrels_path, reranked_path) if path]
        html_file.write(printable(render(report.page(found, *names, warnings=warnings)), lines=True))
    if json_file is not None:
        json_file.write(printable(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n", lines=True))
    if "-" not in {file.name for file in (json_file, html_file) if file}:
        console = Terminal()
        for table in report.terminal(found):
            console.print(table)


def _named(topics: Sequence[str]) -> str:
    more = len(topics) - _TOPICS_NAMED
    return ", ".join(topics[:_TOPICS_NAMED]) + (f" and {more:,} more" if more > 0 else "")
