"""``streamer explain``: why a result stands where it stands."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import click

from streamer.commands.flags import SettingsCommand, Time
from streamer.commands.replay import FILE
from streamer.terminal import Terminal, echo, printable

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence
    from pathlib import Path

    from streamer.explain.report import Explanation
    from streamer.explain.run import Sources
    from streamer.settings import ExplainSettings

_OUTPUT = click.File("w", encoding="utf-8", lazy=True)


@click.command(cls=SettingsCommand, uses="explain", short_help="Explain why a query's results stand where they stand.")
@click.argument("query_id", required=False)
@click.option("--query", "text", help="Instead of QUERY_ID: a text whose candidates are reranked now.")
@click.option(
    "--candidates",
    type=FILE,
    help="With --query: a query.results event, or one candidate per line (clip_id, and optionally score and uri).",
)
@click.option(
    "--candidates-of", metavar="QUERY_ID", help="With --query: the candidates of this query of query.results."
)
@click.option("--clip", "clips", multiple=True, metavar="CLIP_ID", help="With --query: a candidate; may be repeated.")
@click.option("--answers", type=FILE, help="Recorded query.reranked events, one per line, instead of the topic.")
@click.option("--events", type=FILE, help="Recorded query.results events, one per line, instead of the topic.")
@click.option(
    "--uploads",
    type=FILE,
    help="Recorded clips.uploaded events, one per line, instead of the topics of clips; null as uri is a delete.",
)
@click.option("--model-id", help="Only the answer of this model.")
@click.option("--since", type=Time(), help="Only answers and queries from this time on: RFC 3339, or an age like 2h.")
@click.option("--until", type=Time(), help="Only answers and queries before this time: RFC 3339, or an age.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=86_400),
    default=60.0,
    show_default=True,
    help="Seconds for searching each topic.",
)
@click.option(
    "--top", type=click.IntRange(1, 100), default=10, show_default=True, help="Number of first results to explain."
)
@click.option("--no-frames", is_flag=True, help="Fetch no clips and show no frames.")
@click.option("--json", "json_file", type=_OUTPUT, help="Write JSON to this file; - prints only the JSON.")
@click.option("--html", "html_file", type=_OUTPUT, help="Write an HTML page to this file.")
def explain(
    settings: ExplainSettings,
    query_id: str | None,
    text: str | None,
    candidates: Path | None,
    candidates_of: str | None,
    clips: Sequence[str],
    answers: Path | None,
    events: Path | None,
    uploads: Path | None,
    model_id: str | None,
    since: dt.datetime | None,
    until: dt.datetime | None,
    timeout: float,
    top: int,
    no_frames: bool,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    """Show for each of a query's first results the parts of its score, its clip's curve, and the matching frame.

    QUERY_ID is a query that the service has answered: its newest answer is searched for in query.reranked, and its
    method is that of the answer. With --query, candidates are reranked now by the method of the settings. --model is
    needed for the curves and for what the store gives now, --allowed-uris for the frames. Nothing is changed.
    docs/explain.md says what is shown.
    """
    _check((query_id is None) != (text is None), "give exactly one of QUERY_ID and --query")
    chosen = (candidates is not None) + (candidates_of is not None) + bool(clips)
    _check(chosen == (text is not None), "give --candidates, --candidates-of or --clip with --query, exactly one")
    _check(answers is None or query_id is not None, "--answers needs QUERY_ID")
    import orjson  # noqa: PLC0415

    from streamer.explain import page, report  # noqa: PLC0415
    from streamer.explain.run import Sources, of_answer  # noqa: PLC0415
    from streamer.explain.topics import Searcher  # noqa: PLC0415

    searcher = Searcher(settings, timeout, since, until)
    sources = Sources(searcher, answers=answers, events=events, uploads=uploads, model_id=model_id)
    if query_id is not None:
        found = of_answer(settings, query_id, sources, top=top, frames=not no_frames)
    else:
        found = _now(settings, text or "", candidates, candidates_of, clips, sources, top, not no_frames)
    data = report.data(found)
    if html_file is not None:
        html_file.write(printable(page.render(data, found.frames), lines=True))
    if json_file is not None:
        json_file.write(printable(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() + "\n", lines=True))
    if "-" not in {file.name for file in (json_file, html_file) if file}:
        for sentence in (data["sentence"], *data["notes"]):
            echo(sentence)
        Terminal().print(report.terminal(data))


def _check(is_met: bool, what: str) -> None:
    if not is_met:
        raise click.UsageError(what)


def _now(
    settings: ExplainSettings,
    text: str,
    candidates: Path | None,
    candidates_of: str | None,
    clips: Sequence[str],
    sources: Sources,
    top: int,
    frames: bool,
) -> Explanation:
    from streamer.explain.found import ExplainError, Given, candidates_of_file, candidates_of_ids  # noqa: PLC0415
    from streamer.explain.run import of_text  # noqa: PLC0415

    settings.named_model()  # a missing model is reported before anything is read
    engine = ""
    if candidates is not None:
        given = candidates_of_file(candidates)
    elif candidates_of is not None:
        found = sources.query(candidates_of)
        if found is None:
            raise ExplainError(f"there is no query {candidates_of!r} in query.results")
        given, engine = Given(found[0].results, found[1], has_scores=True), found[0].engine
    else:
        given = candidates_of_ids(clips)
    return of_text(settings, text, given, sources, engine=engine, top=top, frames=frames)
