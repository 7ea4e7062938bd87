"""The first results of some topics of a sweep, before and after reranking with the setting that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.evaluation import report
from streamer.evaluation.questions import questions_of
from streamer.evaluation.replay import Replay, offline
from streamer.evaluation.trec import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from streamer.evaluation.sweep_run import Model, Sweep
    from streamer.evaluation.trec import Qrels

Data = dict[str, Any]


def examples(
    found: Mapping[str, Any],
    swept: Sweep,
    run: Run,
    topics: Mapping[str, str],
    qrels: Qrels,
    models: Iterable[Model],
) -> list[Data]:
    """Rerank the topics that gain and lose most with the setting to use, or with the best one if none is shown to gain.

    ``found``: the sweep's results as JSON, ``topics``: the topics' texts. Returns nothing for a setting that stored
    records do not have (another frame interval or precision).
    """
    number = found["points"].index(found[found["use"] or "best"])
    column = swept.columns[number]
    gains = dict(zip(swept.topics, swept.gains(0)[:, number].tolist(), strict=True))
    chosen = report.telling(gains)
    if not column.variant.is_stored or not chosen:
        return []
    some = Run({topic: run.topics[topic] for topic in chosen}, run.tag)
    for model in models:
        if model.name == column.model:
            answers = offline(column.method, questions_of(some, topics), model.encoder, model.store)
            runs = some, Run(Replay(answers).topics)
            return report.examples({topic: gains[topic] for topic in chosen}, runs, qrels, topics, found["measure"])
    return []
