"""``streamer exposure``: counts the exposure of groups of clips in each new answer, until it is stopped."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import structlog

from streamer.endpoints.serving import Endpoints
from streamer.evaluation.audit.attributes import take
from streamer.evaluation.audit.groups import Catalogue
from streamer.evaluation.audit.live import LiveAudit
from streamer.health import Health
from streamer.kafka.readers.follower import Follower
from streamer.kafka.readers.topic_reader import ReadError, TopicReader
from streamer.metrics import Metrics
from streamer.topology import CLIPS_UPLOADED, EXPOSURE, EXPOSURE_METRICS_PORT, QUERY_RERANKED, RERANK

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from streamer.kafka import Record
    from streamer.settings import ExposureSettings

log = structlog.get_logger()


def follow(
    settings: ExposureSettings,
    attributes: Sequence[str],
    *,
    top: int,
    most: int,
    interval: float,
    stop: threading.Event,
) -> None:
    """Count the answers that are committed from now on, by the attributes of clips that were ever uploaded.

    Topics are polled every ``interval`` seconds. Where one cannot be read, the readiness probe says so, and it is tried
    again. Raises :class:`~streamer.settings.SettingsError`, and
    :class:`~streamer.evaluation.questions.ReplayError` if there are too many clips.
    """
    metrics = Metrics(settings.group(RERANK.group))
    health = Health(metrics)
    with (
        contextlib.closing(Endpoints.of(settings, EXPOSURE_METRICS_PORT, health, metrics)) as server,
        contextlib.closing(TopicReader(settings, settings.topic(CLIPS_UPLOADED), EXPOSURE)) as uploads,
        contextlib.closing(TopicReader(settings, settings.topic(QUERY_RERANKED), EXPOSURE)) as answers,
    ):
        log.info("starting", metrics_port=server.port, attributes=list(attributes))
        following = _Following(Follower(uploads, from_beginning=True), Follower(answers, from_beginning=False))
        catalogue = Catalogue(attributes)
        audit: LiveAudit | None = None
        while not stop.is_set():
            try:
                with health.busy():
                    if audit is None:
                        following.pass_on(lambda record: take(catalogue, record), lambda _: None, health, stop)
                        audit = LiveAudit(
                            catalogue,
                            attributes,
                            top=top,
                            most=most,
                            group=settings.group(RERANK.group),
                            metrics=metrics,
                        )
                        health.ready("start")
                    else:
                        following.pass_on(audit.upload, audit.answer, health, stop)
            except ReadError as error:
                health.not_ready("topic", str(error))
            else:
                health.ready("topic")
            stop.wait(interval)
        log.info("stopped")


class _Following:
    """Both topics: uploads first, so that an answer's clips are known."""

    def __init__(self, uploads: Follower, answers: Follower) -> None:
        self._uploads = uploads
        self._answers = answers

    def pass_on(
        self,
        upload: Callable[[Record], None],
        answer: Callable[[Record], None],
        health: Health,
        stop: threading.Event,
    ) -> None:
        """Pass on what is new, until ``stop`` is set; raises :class:`ReadError`."""
        for follower, receive in ((self._uploads, upload), (self._answers, answer)):
            for record in follower.poll():
                receive(record)
                health.progress()
                if stop.is_set():
                    return
