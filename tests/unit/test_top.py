"""``streamer top`` without a broker: what scrapes say, what a target may answer, what a frame looks like."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import ssl
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from rich.console import Console

from streamer.codec import JSON
from streamer.events import QueryReranked, Reason, RerankedCandidate, Status, now
from streamer.kafka import Record, dead_letter
from streamer.metrics import Metrics
from streamer.scrape import ExpositionError, Scrape, Window, merged, quantile
from streamer.settings import SettingsError, load
from streamer.top.targets import Target, TargetError
from streamer.top.view import View, ranges
from streamer.top.watch import Answer, Frame, Instance, Letter, Load, Move, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOUNDS = (0.01, 0.1, 1.0, 10.0)
SECONDS = st.floats(0, 20)
GROWTH = st.lists(st.floats(0, 1e6), max_size=20)


def scraped(registry: CollectorRegistry, at: float = 0.0) -> Scrape:
    return Scrape.parse(generate_latest(registry).decode(), at=at)


def observed(values: list[float]) -> Scrape:
    registry = CollectorRegistry()
    histogram = Histogram("h", "h", registry=registry, buckets=BOUNDS)
    for value in values:
        histogram.observe(value)
    return scraped(registry)


# -- figures -----------------------------------------------------------------------------------------------------------


@given(st.lists(SECONDS, min_size=1), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    true = sorted(values)[math.ceil(q * len(values)) - 1]
    lower = max((bound for bound in (0.0, *BOUNDS) if bound < true), default=0.0)
    upper = min((bound for bound in BOUNDS if bound >= true), default=BOUNDS[-1])
    assert lower <= quantile(q, observed(values).buckets("h")) <= upper


@given(st.lists(SECONDS, min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_grow_with_their_level(values: list[float], one: float, other: float) -> None:
    buckets = observed(values).buckets("h")
    assert quantile(min(one, other), buckets) <= quantile(max(one, other), buckets)


def test_without_observations_there_is_no_quantile() -> None:
    assert math.isnan(quantile(0.5, observed([]).buckets("h")))
    assert math.isnan(quantile(0.5, {}))


@given(st.lists(SECONDS), st.lists(SECONDS))
def test_a_window_holds_what_came_within_it_and_merging_adds_up(before: list[float], within: list[float]) -> None:
    window = Window(observed(before), observed(before + within))
    assert window.buckets("h") == observed(within).buckets("h")
    assert merged([observed(before).buckets("h"), observed(within).buckets("h")]) == window.after.buckets("h")


@given(GROWTH, st.integers(0, 20))
def test_growth_adds_up_over_any_restart(growth: list[float], restart_before: int) -> None:
    """A counter that begins anew loses nothing but what it grew by between the last scrape and its end."""
    count, scrapes = 0.0, [Scrape(0.0, {"c": {frozenset(): 0.0}})]
    for number, more in enumerate(growth):
        count = more if number == restart_before else count + more
        started: dict[frozenset[tuple[str, str]], float] = {frozenset(): float(number >= restart_before)}
        scrapes.append(Scrape(number + 1.0, {"c": {frozenset(): count}, "process_start_time_seconds": started}))
    windows = [Window(*pair) for pair in itertools.pairwise(scrapes[1:])]
    increases = [window.increase("c") for window in windows]
    assert all(increase >= 0 for increase in increases)
    # To what subtracting large counts leaves of small ones.
    assert sum(increases) == pytest.approx(sum(growth[1:]), abs=1e-12 * sum(growth))


def test_labels_select_and_rates_are_by_the_second() -> None:
    registry = CollectorRegistry()
    counter = Counter("c_total", "c", ["topic"], registry=registry)
    counter.labels("a").inc(10)
    first = scraped(registry, 100.0)
    counter.labels("a").inc(20)
    counter.labels("b").inc(5)
    window = Window(first, scraped(registry, 102.0))
    assert (window.rate("c_total"), window.rate("c_total", topic="a"), window.rate("c_total", topic="x")) == (
        12.5,
        10,
        0,
    )
    assert Window(first, first).rate("c_total") == 0


@given(st.text())
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    told = ""
    try:
        Scrape.parse(text, at=0.0)
    except ExpositionError as error:
        told = str(error)
    assert "\n" not in told


def test_our_own_metrics_are_read() -> None:
    metrics = Metrics()
    metrics.build_info.labels("1", "rerank", "m").set(1)
    scrape = scraped(metrics.registry)
    assert scrape.total("streamer_build_info", command="rerank") == 1
    assert scrape.total("process_start_time_seconds") == pytest.approx(psutil.Process().create_time(), abs=5)


def test_every_metric_of_a_service_carries_its_group() -> None:
    metrics = Metrics("streamer-rerank-blue")
    metrics.lag.labels("query.results", "0").set(7)
    scrape = scraped(metrics.registry)
    assert scrape.total("streamer_consumer_lag_records", group="streamer-rerank-blue", partition="0") == 7
    assert all(("group", "streamer-rerank-blue") in key for series in scrape.samples.values() for key in series)
    assert {key - {("group", "streamer-rerank-blue")} for key in scrape.samples["streamer_ready"]} == {frozenset()}


# -- targets -----------------------------------------------------------------------------------------------------------


@contextmanager
def answering(
    body: bytes, status: int = 200, *, authority: trustme.CA | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve one answer; yields the address, and the Authorization headers that came."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def test_a_target_is_read_with_its_password_which_is_never_shown() -> None:
    with answering(b"up 1\n") as (address, seen):
        target = Target(f"http://me:p%40ss@{address}")
        assert target.scrape().total("up") == 1
        assert target.name == address
    assert seen == ["Basic bWU6cEBzcw=="]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [(b"", 503, "503"), (b"", 302, "302"), (b"<html>", 200, "no metrics"), (b"x" * (9 << 20), 200, "more than 8 MiB")],
)
def test_an_invalid_response_of_a_target_is_reported(body: bytes, status: int, told: str) -> None:
    with answering(body, status) as (address, _), pytest.raises(TargetError, match=told):
        Target(f"http://{address}").scrape()


def test_an_unreachable_target_is_reported() -> None:
    with pytest.raises(TargetError, match="refused"):
        Target("http://127.0.0.1:1").scrape()


def test_https_is_checked_against_the_given_authority(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with answering(b"up 1\n", authority=authority) as (address, _):
        assert Target(f"https://{address}", ca=tmp_path / "ca.pem").scrape().total("up") == 1
        with pytest.raises(TargetError, match="certificate"):
            Target(f"https://{address}").scrape()


@pytest.mark.parametrize("url", ["localhost:9400", "ftp://host/", "http://", "http://host:port"])
def test_what_is_no_url_of_a_target_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the command says which setting it is
        Target(url)


def test_targets_are_given_by_commas_or_as_json_and_a_wrong_one_shows_no_password() -> None:
    assert load({"targets": "http://a:1, https://b"}).targets == ("http://a:1", "https://b")
    assert load({"targets": '["http://a:1"]'}).targets == ("http://a:1",)
    with pytest.raises(SettingsError) as caught:
        load({"targets": ","})
    assert "got" not in str(caught.value)
    assert "me:pass" not in repr(load({"targets": "https://me:pass@host"}))


# -- view --------------------------------------------------------------------------------------------------------------

NAN = math.nan


def frame(**changes: Any) -> Frame:
    load_ = Load(123.4, 123.4, 0.5, 0.0, 1234, 2.5, 0.007, 0.0123)
    event = QueryReranked(
        query_id="q1", query="a man [b]on a red bicycle", engine="e", issued_at=now(), reranked_at=now(), model_id="m",
        alpha=0.4, depth=100, normalization="minmax", degraded=None,
        results=[RerankedCandidate(clip_id="clip-7", rank=1, score=0.9, initial_rank=5, initial_score=1.0,
                                   frame_score=0.3, moment_ms=3500, status=Status.RERANKED)],
    )  # fmt: skip
    at = event.issued_at + dt.timedelta(seconds=3)
    made = Frame(
        at=at,
        interval=2,
        instances=[
            Instance("host:9401", command="rerank", lags={0: 1, 1: 2, 2: 0, 5: 9}, rebalances=4, load=load_,
                     move=Move(3, frozenset({5}), frozenset({3, 4}))),
            Instance("host:9402", command="rerank", not_ready=("broker", "store"), lags={3: 1, 4: 2}, rebalances=2),
            Instance("host:9403", problem="Connection refused"),
        ],
        totals={("rerank", ""): load_},
        answers=[Answer(event, event.issued_at)],
        letters=[Letter("query.results", "rerank", "q9", "not_json", "no [JSON]\nat all", at)],
        problem=None,
    )  # fmt: skip
    return replace(made, **changes)


def drawn(view: View, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: PTH123, SIM115
    console.print(view)
    return console.export_text()


def test_top_shows_all_columns_in_a_wide_terminal() -> None:
    text = drawn(View(frame()), 160)
    for told in (
        "2 of 3 targets reachable", "123", "1,234", "2.5 s", "7 ms", "12 ms", "not ready: broker, store",
        "unreachable: Connection refused", "0-2,5", "+5 -3-4", "rebalance 3 s ago", "a man [b]on a red bicycle",
        "clip-7", "3.5 s", "not_json", "no [JSON] at all",
    ):  # fmt: skip
        assert told in text, told


def test_two_groups_of_one_command_are_distinguished() -> None:
    made = frame()
    blue, green = (f"streamer-rerank-{name}" for name in ("blue", "green"))
    (total,) = made.totals.values()
    letters = [Letter("query.results", group, "q9", "not_json", "no JSON", made.at) for group in (blue, green)]
    text = drawn(
        View(
            frame(
                instances=[
                    Instance("h:1", command="rerank", group=blue),
                    Instance("h:2", command="rerank", group=green),
                ],
                totals={("rerank", blue): total},
                letters=letters,
            )
        ),
        200,
    )
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert any(row.startswith(f"h:2 rerank ({green})") for row in rows)
    assert any(row.startswith(f"all rerank ({blue})") for row in rows)
    assert any(f"query.results {green} not_json q9" in row for row in rows)
    assert f"({blue})" not in drawn(View(frame(instances=[Instance("h:1", command="rerank", group=blue)])), 200)


def answered(**changes: str) -> QueryReranked:
    (answer,) = frame().answers
    return msgspec.structs.replace(answer.event, **changes)


def listed(answers: list[Answer]) -> list[str]:
    return [" ".join(line.split()) for line in drawn(View(frame(answers=answers)), 200).splitlines()]


def test_answers_of_two_groups_or_models_to_one_query_are_distinguished() -> None:
    at = now()
    alone = [Answer(answered(), at, "streamer-rerank")] * 2
    assert not any("streamer-rerank clip-7" in row for row in listed(alone))
    groups = [Answer(answered(), at, f"streamer-rerank-{name}") for name in ("blue", "green")]
    for name in ("blue", "green"):
        assert any(f"a man [b]on a red bicycle streamer-rerank-{name} clip-7" in row for row in listed(groups))
    models = [Answer(answered(model_id=name), at) for name in ("m-blue", "m-green")]
    for name in ("m-blue", "m-green"):
        assert any(f"a man [b]on a red bicycle {name} clip-7" in row for row in listed(models))


@pytest.mark.parametrize(("suffix", "shown"), [(None, {"blue", "green", ""}), ("-blue", {"blue", ""})])
def test_of_several_groups_the_one_that_is_chosen_is_shown(
    suffix: str | None, shown: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def records() -> Iterator[Record]:
        for name in ("blue", "green", ""):
            group = f"streamer-rerank-{name}" if name else ""
            headers = (("streamer.group", group.encode()),) if name else ()
            yield Record("query.reranked", 0, 0, b"q", JSON.encode(answered(engine=name or "-")), headers, now())
            letter = dead_letter(
                Record("query.results", 0, 0, b"q", b"", (), now(), group=group), Reason.INTERNAL, name
            )
            yield Record(letter.topic, 0, 0, letter.key, letter.value, letter.headers, now())

    tail = SimpleNamespace(poll=lambda: list(records()), problem=None, close=lambda: None)
    monkeypatch.setattr("streamer.top.watch.Tail", lambda *_: tail)
    with closing(Watch(load({"group_suffix": suffix} if suffix else {}), [], interval=1)) as watch:
        made = watch.frame()
    assert {each.group.removeprefix("streamer-rerank-") for each in made.answers} == shown
    assert {each.group.removeprefix("streamer-rerank-") for each in made.letters} == shown


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100])
def test_no_line_is_longer_than_the_terminal_and_what_matters_stays(width: int) -> None:
    text = drawn(View(frame()), width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 60:
        assert "lag" in text
        assert "p95" in text
        assert "clip-7" in text


@pytest.mark.parametrize("height", [10, 24, 50])
def test_many_recent_records_fit_the_height(height: int) -> None:
    several = frame(answers=[*frame().answers] * 50, letters=[*frame().letters] * 50)
    lines = drawn(View(several, height=height), 120).splitlines()
    assert len(lines) <= max(height, 28)
    assert "recent dead letters" in "\n".join(lines)


def test_before_anything_is_known_it_says_so() -> None:
    empty = frame(
        instances=[Instance("h:1", command="embed")], totals={}, answers=[], letters=[], problem="Kafka at b: away"
    )
    text = drawn(View(empty), 100)
    assert "Kafka at b: away" in text
    assert "…" in text


@given(st.sets(st.integers(0, 60)))
def test_ranges_say_exactly_the_numbers(numbers: set[int]) -> None:
    parts = [part.split("-") for part in ranges(numbers).split(",") if part]
    assert [n for part in parts for n in range(int(part[0]), int(part[-1]) + 1)] == sorted(numbers)
