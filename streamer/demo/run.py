"""``streamer demo``: runs the whole pipeline on a real Kafka and shows its progress.

Clips are rendered (or taken from a folder), a stand-in engine ranks clips by whole-clip similarity, and the two real
commands run as processes. All results are read as a user would read them: events from the topics by a read_committed
consumer, figures from /metrics.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streamer.codec import JSON
from streamer.demo.material import DemoError, Material, Query, own_material, rendered_material
from streamer.demo.report import FramePictures, Judged, write
from streamer.demo.services import ServiceProcess
from streamer.demo.show import Stage, before_and_after, figures, mean, most_telling
from streamer.encoders import DEMO, load_model
from streamer.events import Candidate, ClipEmbedded, ClipUploaded, QueryReranked, QueryResults, now
from streamer.kafka import Output
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply, drop
from streamer.kafka.readers.publish import Reader, publish
from streamer.local_kafka.broker import LocalKafka, free_ports
from streamer.scrape import quantile
from streamer.settings import ENV_PREFIX, Connection, as_variables
from streamer.synthetic.engine import BaseEngine
from streamer.synthetic.measures import average_precision
from streamer.terminal import Terminal, plain
from streamer.top.targets import Target
from streamer.top.watch import Watch
from streamer.topology import DEMO_PREFIX, EMBED, RERANK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streamer.settings import DemoSettings

_STEADY_EVENTS_PER_S = 25.0
_STEADY_EVENTS, _BACKLOG_EVENTS = 300, 2_000
_PATIENCE_S = 120.0
_LOOK_EVERY_S = 1.0


def run(
    settings: DemoSettings,
    *,
    config: Path | None,
    clips: Path | None,
    queries: Path | None,
    report: Path,
    keep: bool,
) -> None:
    """Run the demo to its end, or with ``keep`` until Ctrl-C.

    Configured brokers are used instead of a local one; the default model for rendered clips is the small one.
    ``config`` is passed to the services, too. ``clips`` and ``queries``: a folder of videos and a file with one query
    per line, instead of rendered ones; a model must be named then. Raises :class:`DemoError`, :class:`ServiceError`,
    :class:`BrokerError` or :class:`SettingsError`.
    """
    if clips is None and settings.model is None:
        settings = settings.model_copy(update={"model": DEMO})
    settings.named_model()
    console = Terminal()
    # However the demo ends, the processes that it started end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The console shows the progress; the services' logs are in separate files.
    logging.getLogger("streamer").setLevel(logging.WARNING)
    with contextlib.ExitStack() as cleanup:
        work = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="streamer-demo-")))
        material = own_material(clips, queries) if clips and queries else rendered_material(console, work)
        connection = _connection(console, settings, cleanup)
        _make_topics(console, connection, cleanup)
        variables = {
            **({} if config is None else {f"{ENV_PREFIX}CONFIG": str(config.resolve())}),
            **as_variables(settings),
            **as_variables(connection),
        }
        services = _start_services(console, variables, material, work, cleanup)
        answers = _engine_answers(console, settings, material)
        targets = [Target(service.url) for service in (services.embed, services.rerank)]
        stage = Stage(console, Watch(connection, targets, interval=_LOOK_EVERY_S))
        pictures = FramePictures(
            material.clips,
            interval=settings.frame_interval,
            max_frames=settings.max_frames,
            sandbox=settings.decoder_sandbox,
        )
        cleanup.callback(pictures.close)
        Demo(console, stage, connection, material, services, answers, pictures).run(report)
        if keep:
            _wait_for_ctrl_c(console, connection, services)


@dataclass(frozen=True, slots=True)
class Services:
    """The two running services."""

    embed: ServiceProcess
    rerank: ServiceProcess


class Demo:
    """One run on running services: uploads, queries and results."""

    def __init__(
        self,
        console: Terminal,
        stage: Stage,
        connection: Connection,
        material: Material,
        services: Services,
        answers: Mapping[str, Sequence[tuple[str, float]]],
        pictures: FramePictures,
    ) -> None:
        self._console = console
        self._stage = stage
        self._connection = connection
        self._material = material
        self._services = services
        self._answers = answers
        self._pictures = pictures

    def run(self, report: Path) -> None:
        """Embed, rerank, measure, show, and write the report."""
        with self._stage:
            embedded, embed_seconds = self._embed()
            reranked = self._rerank_steadily()
            steady = self._services.rerank.metrics().buckets("streamer_event_latency_seconds")
            events_per_s = self._rerank_backlog()
        judged = [self._judge(query, reranked[query.query_id]) for query in self._material.queries]
        lag = self._await_no_lag()
        known = [each for each in judged if each.before is not None and each.after is not None]
        summary = {
            "map_before": mean([each.before for each in known]),
            "map_after": mean([each.after for each in known]),
            "clips": len(embedded),
            "frames": sum(event.frames for event in embedded),
            "queries": len(judged),
            "clips_per_s": len(embedded) / embed_seconds,
            "frames_per_s": sum(event.frames for event in embedded) / embed_seconds,
            "events_per_s": events_per_s,
            "p50_ms": 1000 * quantile(0.5, steady),
            "p95_ms": 1000 * quantile(0.95, steady),
            "lag_records": lag,
        }
        for each in most_telling(judged):
            self._console.print(before_and_after(each))
        self._console.print(figures(summary))
        page = write(report, summary=summary, queries=judged, pictures=self._pictures, model=embedded[0].model_id)
        self._console.print(f"The report is {page}")

    def _embed(self) -> tuple[list[ClipEmbedded], float]:
        """Publish all uploads, and read clips.embedded until each clip is embedded or dead-lettered."""
        uploads = [
            ClipUploaded(clip_id=clip_id, uri=path.resolve().as_uri(), uploaded_at=now())
            for clip_id, path in self._material.clips.items()
        ]
        topic, dead = self._connection.topic(EMBED.output), self._connection.topic(EMBED.dead_letters)
        reader = Reader(self._connection, [topic, dead])
        embedded: list[ClipEmbedded] = []
        began = time.monotonic()
        publish(self._connection, (self._output(EMBED.input, each.clip_id, JSON.encode(each)) for each in uploads))
        with contextlib.closing(reader), self._stage.progress() as progress:
            bar = progress.add_task("clips embedded", total=len(uploads))
            refused = 0
            for record in reader.records(patience=_PATIENCE_S):
                if record.topic == dead:
                    refused += 1
                    why = dict(record.headers).get("dlq.error") or b""
                    self._console.print(plain(f"dead-lettered {_text(record.key)}: {_text(why)}", "yellow"))
                else:
                    embedded.append(JSON.decode(ClipEmbedded, record.value))
                progress.update(bar, completed=len(embedded))
                if len(embedded) + refused == len(uploads):
                    break
            else:
                self._services.embed.check()
                raise DemoError(
                    f"only {len(embedded)} of {len(uploads)} clips were embedded; streamer embed's log ends with:\n"
                    f"{self._services.embed.log_tail()}"
                )
        if not embedded:
            raise DemoError("none of the clips could be embedded")
        return embedded, time.monotonic() - began

    def _rerank_steadily(self) -> dict[str, QueryReranked]:
        """Publish each query, some more than once, at a steady rate; return the last result of each."""
        queries = self._material.queries
        count = max(_STEADY_EVENTS, len(queries))
        began = time.monotonic()

        def paced() -> Iterator[Output]:
            for number in range(count):
                time.sleep(max(0.0, began + number / _STEADY_EVENTS_PER_S - time.monotonic()))
                query = queries[number % len(queries)]
                yield self._question(query, f"{query.query_id}.{number // len(queries)}")

        answers = self._ask(paced(), count, f"queries reranked, {_STEADY_EVENTS_PER_S:.0f} per second")
        return {answer.query_id.rpartition(".")[0]: answer for answer in answers}

    def _rerank_backlog(self) -> float:
        """Publish many queries at once; return the number of reranked queries per second."""
        queries = self._material.queries
        began = time.monotonic()
        questions = (
            self._question(queries[number % len(queries)], f"backlog.{number}") for number in range(_BACKLOG_EVENTS)
        )
        self._ask(questions, _BACKLOG_EVENTS, "queries reranked, from a backlog")
        return _BACKLOG_EVENTS / (time.monotonic() - began)

    def _ask(self, questions: Iterator[Output], count: int, title: str) -> list[QueryReranked]:
        """Publish queries from a separate thread and collect the results."""
        wanted: set[str] = set()

        def ask() -> None:
            def noted() -> Iterator[Output]:
                for question in questions:
                    wanted.add((question.key or b"").decode())
                    yield question

            publish(self._connection, noted())

        reader = Reader(self._connection, [self._connection.topic(RERANK.output)])
        answers: list[QueryReranked] = []
        thread = threading.Thread(target=ask, name="questions", daemon=True)
        thread.start()
        with contextlib.closing(reader), self._stage.progress() as progress:
            bar = progress.add_task(title, total=count)
            for record in reader.records(patience=_PATIENCE_S):
                answer = JSON.decode(QueryReranked, record.value)
                if answer.query_id in wanted:
                    answers.append(answer)
                    progress.update(bar, completed=len(answers))
                if len(answers) == count:
                    return answers
        self._services.rerank.check()
        raise DemoError(f"only {len(answers)} of {count} queries were reranked")

    def _question(self, query: Query, query_id: str) -> Output:
        event = QueryResults(
            query_id=query_id,
            query=query.text,
            engine=BaseEngine.NAME,
            issued_at=now(),
            results=[Candidate(clip_id=clip_id, score=score) for clip_id, score in self._answers[query.query_id]],
        )
        return self._output(RERANK.input, query_id, JSON.encode(event))

    def _output(self, topic: str, key: str, value: bytes) -> Output:
        return Output(self._connection.topic(topic), key.encode(), value, ())

    def _judge(self, query: Query, event: QueryReranked) -> Judged:
        if not query.relevant:
            return Judged(event, None, None, None)
        initial = [result.clip_id for result in sorted(event.results, key=lambda result: result.initial_rank)]
        final = [result.clip_id for result in event.results]
        before, after = (average_precision(ranked, query.relevant) for ranked in (initial, final))
        return Judged(event, query.relevant, before, after)

    def _await_no_lag(self) -> int:
        """Return the consumer lag of both services once it is stable: the gauges are updated every second."""
        deadline = time.monotonic() + 5
        while (lag := self._lag()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return lag

    def _lag(self) -> int:
        return int(
            self._services.embed.metrics().total("streamer_consumer_lag_records")
            + self._services.rerank.metrics().total("streamer_consumer_lag_records")
        )


# -- preparations --------------------------------------------------------------------------------------------


def _connection(console: Terminal, settings: DemoSettings, cleanup: contextlib.ExitStack) -> Connection:
    """Give the demo its own topics and groups on any cluster."""
    named = "bootstrap_servers" in settings.model_fields_set
    return Connection(
        bootstrap_servers=settings.bootstrap_servers if named else _start_kafka(console, cleanup),
        kafka=settings.kafka,
        topic_prefix=f"{DEMO_PREFIX}{secrets.token_hex(3)}.",
    )


def _start_kafka(console: Terminal, cleanup: contextlib.ExitStack) -> str:
    with console.status("Starting Apache Kafka (42 MB are downloaded the first time)"):
        kafka = cleanup.enter_context(LocalKafka())
    console.print(f"Apache Kafka runs at {kafka.bootstrap_servers}")
    return kafka.bootstrap_servers


def _make_topics(console: Terminal, connection: Connection, cleanup: contextlib.ExitStack) -> None:
    specs = load_specs()
    for change in apply(connection, specs):
        console.print(plain(str(change), "dim"))
    cleanup.callback(drop, connection, specs)


def _start_services(
    console: Terminal,
    given: Mapping[str, str],
    material: Material,
    work: Path,
    cleanup: contextlib.ExitStack,
) -> Services:
    variables = {
        **given,
        "STREAMER_STORE": f"lmdb:{work / 'store'}",
        "STREAMER_ALLOWED_URIS": f'["{material.folder.resolve().as_uri()}"]',
        "STREAMER_LOG_FORMAT": "json",
    }
    ports = free_ports(2)
    running = [
        cleanup.enter_context(ServiceProcess(command, variables, log=work / f"{command}.log", port=port))
        for command, port in zip(("embed", "rerank"), ports, strict=True)
    ]
    with console.status("Starting streamer embed and streamer rerank"):
        for service in running:
            service.await_ready()
    for service in running:
        console.print(f"streamer {service.command} is ready: {service.url}/metrics")
    return Services(*running)


def _engine_answers(
    console: Terminal, settings: DemoSettings, material: Material
) -> dict[str, Sequence[tuple[str, float]]]:
    """Rank all queries by the stand-in engine: the base that is reranked."""
    with console.status("The stand-in engine indexes whole clips"):
        engine = BaseEngine(load_model(settings), material.clips, sandbox=settings.decoder_sandbox)
        return {query.query_id: engine.rank(query.text, top=settings.depth) for query in material.queries}


# -- what is shown -------------------------------------------------------------------------------------------


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _wait_for_ctrl_c(console: Terminal, connection: Connection, services: Services) -> None:
    console.print(
        f"Everything keeps running. Kafka: {connection.bootstrap_servers}, topics {connection.topic(EMBED.input)} etc. "
        f"Metrics: {services.embed.url}/metrics and {services.rerank.url}/metrics. Stop with Ctrl-C."
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
