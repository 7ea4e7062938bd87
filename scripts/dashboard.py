"""The Grafana dashboard, generated from the catalogue of metrics, with a row for each topic of an investigation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueTextMode, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
)

from streamer.metrics import CATALOGUE

_SELECTED = 'namespace=~"$namespace", job=~"$job", group=~"$group", instance=~"$instance"'
_WINDOW = "[$__rate_interval]"
_SOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
_WIDTH, _HEIGHT = 8, 7
"""A panel's size in grid units: three panels fill a row of 24."""


@dataclass(frozen=True)
class Query:
    """One query of a panel and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. ``unit`` is Grafana's id; ``about``: the metrics whose help texts make up its description."""

    title: str
    queries: list[Query]
    unit: str = "short"
    about: tuple[str, ...] = ()
    kind: Literal["lines", "number"] = "lines"


def _series(metric: str, suffix: str = "", extra: str = "") -> str:
    selected = f"{extra}, {_SELECTED}" if extra else _SELECTED
    return f"{CATALOGUE[metric].name}{suffix}{{{selected}}}"


def _by(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Add the consumer group, so that no series adds up sets of services that share the topics."""
    return ("group", *labels)


def _legend(labels: tuple[str, ...]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def _per_second(metric: str, *labels: str, suffix: str = "", extra: str = "") -> Query:
    by = _by(labels)
    legend = _legend(by)
    return Query(f"sum by ({', '.join(by)}) (rate({_series(metric, suffix, extra)}{_WINDOW}))", legend)


def _named(query: Query, legend: str) -> Query:
    return Query(query.expr, f"{{{{group}}}} {legend}")


def _only_above_0(query: Query) -> Query:
    """Hide series that are 0: some metrics expose all their label values from the start."""
    return Query(f"{query.expr} > 0", query.legend)


def _quantile(q: float, metric: str, *labels: str, extra: str = "") -> Query:
    by = _by(labels)
    rates = f"rate({_series(metric, '_bucket', extra)}{_WINDOW})"
    expr = f"histogram_quantile({q:g}, sum by ({', '.join((*by, 'le'))}) ({rates}))"
    return Query(expr, f"{_legend(by)} p{100 * q:g}")


def _mean(metric: str, *labels: str) -> Query:
    total, count = _per_second(metric, *labels, suffix="_sum"), _per_second(metric, *labels, suffix="_count")
    return Query(f"{total.expr} / {count.expr}", total.legend)


def _gauge(how: Literal["sum", "max", "min"], metric: str, *labels: str, extra: str = "") -> Query:
    by = _by(labels)
    legend = _legend(by)
    return Query(f"{how} by ({', '.join(by)}) ({_series(metric, extra=extra)})", legend)


def _exposed(order: str) -> Query:
    """Make a query of each group's mean exposure in one order."""
    by = ("attribute", "value")
    total = _per_second("exposure", *by, extra=f'order="{order}"')
    return Query(f"{total.expr} / on (group) group_left {_per_second('exposure_queries').expr}", total.legend)


def _process(expr: str, legend: str = "{{job}} {{instance}}") -> Query:
    """Make a query of the standard process metrics."""
    return Query(expr.replace("{}", f"{{{_SELECTED}}}"), legend)


ROWS: dict[str, list[Panel]] = {
    "User impact": [
        Panel(
            "Alerts firing",
            [Query('count(ALERTS{alertname=~"Streamer.+", alertstate="firing"}) or vector(0)', "firing")],
            kind="number",
        ),
        Panel("Ready instances", [_gauge("sum", "ready")], about=("ready",), kind="number"),
        Panel(
            "Why instances are not ready",
            [Query(f"sum by (group, condition) ({_series('unready')})", "{{group}} {{condition}}")],
            about=("unready",),
        ),
        Panel(
            "Latency from issued_at to the reranked result",
            [_quantile(q, "latency", extra='job="streamer-rerank"') for q in (0.5, 0.95, 0.99)],
            "s",
            ("latency",),
        ),
        Panel(
            "Freshness: uploaded_at to searchable",
            [_quantile(q, "freshness") for q in (0.5, 0.9, 0.99)],
            "s",
            ("freshness",),
        ),
        Panel("Degraded queries", [_per_second("degraded", "reason")], "reqps", ("degraded",)),
        Panel(
            "Dead letters",
            [_only_above_0(_per_second("dead_lettered", "topic", "reason"))],
            "cps",
            ("dead_lettered",),
        ),
        Panel("Redriven for another group", [_per_second("passed_over", "topic")], "cps", ("passed_over",)),
        Panel("Candidates", [_per_second("candidates", "status")], "cps", ("candidates",)),
        Panel("Clips in the store", [_gauge("max", "store_clips")], "short", ("store_clips",)),
    ],
    "Lag and throughput": [
        Panel("Lag in seconds", [_gauge("max", "lag_seconds", "topic")], "s", ("lag_seconds",)),
        Panel("Lag in records", [_gauge("sum", "lag", "topic")], "short", ("lag",)),
        Panel(
            "Out-of-order commits",
            [_gauge("sum", "completed_ahead", "topic")],
            "short",
            ("completed_ahead",),
        ),
        Panel(
            "Waiting for an upstream transaction",
            [_gauge("max", "unstable_seconds", "topic"), _gauge("sum", "unstable", "topic")],
            "short",
            ("unstable_seconds", "unstable"),
        ),
        Panel(
            "Log resets, topics created again, and offsets lost to retention",
            [
                _per_second("log_resets", "topic", "reason"),
                _per_second("topics_recreated", "topic"),
                _per_second("retention_lost", "topic"),
            ],
            "cps",
            ("log_resets", "topics_recreated", "retention_lost"),
        ),
        Panel(
            "Commits without the list of completed records",
            [_per_second("commits_shortened")],
            "cps",
            ("commits_shortened",),
        ),
        Panel("Events in", [_per_second("consumed", "topic")], "cps", ("consumed",)),
        Panel("Events out", [_per_second("produced", "topic")], "cps", ("produced",)),
        Panel("In flight", [_gauge("sum", "in_flight", "instance")], "short", ("in_flight",)),
        Panel("Bytes in flight", [_gauge("sum", "in_flight_bytes", "instance")], "bytes", ("in_flight_bytes",)),
        Panel(
            "Partitions",
            [
                _named(_gauge("max", "partitions"), "total"),
                _named(_gauge("sum", "assigned"), "assigned"),
                _named(_gauge("sum", "paused"), "paused"),
                _named(_gauge("sum", "unreadable"), "unreadable"),
            ],
            "short",
            ("partitions", "assigned", "paused", "unreadable"),
        ),
        Panel("Rebalances", [_per_second("rebalances", "kind")], "cps", ("rebalances",)),
    ],
    "Stages": [
        Panel("Busy threads", [_per_second("stage", "stage", suffix="_sum")], "short", ("stage",)),
        Panel("Batch time, mean", [_mean("stage", "stage")], "s", ("stage",)),
        Panel("Queue wait, p95", [_quantile(0.95, "queue_wait", "stage")], "s", ("queue_wait",)),
        Panel("Batch size, mean", [_mean("batch", "stage")], "short", ("batch",)),
        Panel("Scoring time per query", [_quantile(q, "scoring") for q in (0.5, 0.99)], "s", ("scoring",)),
        Panel("Answers by the largest match", [_per_second("match", "le", suffix="_bucket")], "cps", ("match",)),
        Panel("Query cache", [_per_second("query_cache", "result")], "cps", ("query_cache",)),
        Panel("Retries", [_per_second("retries", "stage")], "cps", ("retries",)),
    ],
    "Kafka transactions": [
        Panel("Transactions", [_per_second("transactions", "outcome")], "cps", ("transactions",)),
        Panel(
            "Transaction time", [_quantile(q, "transaction") for q in (0.5, 0.99)], "s", ("transaction",)
        ),
        Panel(
            "Outputs with the current time instead of the input's",
            [_per_second("retimed", "topic", "reason")],
            "cps",
            ("retimed",),
        ),
        Panel("Records per transaction, mean", [_mean("transaction_size")], "short", ("transaction_size",)),
    ],
    "Ingest": [
        Panel(
            "Frames",
            [
                _named(_per_second("frames_decoded"), "decoded"),
                _named(_per_second("frames_encoded"), "encoded"),
                _named(_per_second("frames_duplicate"), "duplicates"),
            ],
            "cps",
            ("frames_decoded", "frames_encoded", "frames_duplicate"),
        ),
        Panel(
            "Clips",
            [
                _named(_per_second("superseded"), "superseded"),
                _named(_per_second("deleted"), "deleted"),
                _named(_per_second("partial"), "partially damaged"),
                _named(_per_second("recoloured"), "colours assumed"),
            ],
            "cps",
            ("superseded", "deleted", "partial", "recoloured"),
        ),
        Panel("Decoder failures", [_per_second("decoder_failures", "cause")], "cps", ("decoder_failures",)),
        Panel("Instances by sandbox", [_gauge("sum", "decoder_sandbox", "mode")], "short", ("decoder_sandbox",)),
        Panel("Postponed uploads by shortage", [_per_second("machine_faults", "lack")], "cps", ("machine_faults",)),
    ],
    "Store": [
        Panel(
            "Store latency",
            [_quantile(q, "store", "operation") for q in (0.5, 0.99)],
            "s",
            ("store",),
        ),
        Panel("Store errors", [_per_second("store_errors", "operation")], "cps", ("store_errors",)),
        Panel("Store cache", [_per_second("store_cache", "result")], "cps", ("store_cache",)),
        Panel("Corrupt records", [_per_second("corrupt_records")], "cps", ("corrupt_records",)),
        Panel("Store size", [_gauge("max", "store_bytes")], "bytes", ("store_bytes",)),
        Panel("Memory of the fullest server", [_gauge("max", "store_memory")], "percentunit", ("store_memory",)),
        Panel("Evicted keys", [_per_second("store_evicted_keys")], "cps", ("store_evicted_keys",)),
        Panel("Replica lag", [_gauge("max", "store_replica_lag")], "s", ("store_replica_lag",)),
        Panel("Replica reads", [_per_second("store_replica_reads")], "cps", ("store_replica_reads",)),
    ],
    "Fairness": [
        Panel("Share of the candidates", [_exposed("candidates")], "percentunit", ("exposure",)),
        Panel("Share of exposure in the engine's order", [_exposed("engine")], "percentunit", ("exposure",)),
        Panel("Share of exposure after reranking", [_exposed("reranked")], "percentunit", ("exposure",)),
        Panel("Queries that are counted", [_per_second("exposure_queries")], "reqps", ("exposure_queries",)),
        Panel("Answers left out", [_per_second("exposure_left_out", "reason")], "reqps", ("exposure_left_out",)),
    ],
    "Process": [
        Panel(
            "Version and model",
            [
                Query(
                    f"count by (group, version, model_id) ({_series('build_info')})",
                    "{{group}} {{version}} {{model_id}}",
                )
            ],
            about=("build_info",),
            kind="number",
        ),
        Panel(
            "Inference precision",
            [
                Query(
                    f"count by (group, model, dtype, device) ({_series('model_info')})",
                    "{{group}} {{dtype}} {{device}}",
                )
            ],
            about=("model_info",),
            kind="number",
        ),
        Panel("CPU", [_process("rate(process_cpu_seconds_total{}[$__rate_interval])")], "short"),
        Panel("Memory", [_process("process_resident_memory_bytes{}")], "bytes"),
        Panel("Open files", [_process("process_open_fds{}")], "short"),
        Panel(
            "Refused connections to the metrics port",
            [_per_second("connections_refused", "reason")],
            "cps",
            ("connections_refused",),
        ),
        Panel("Uptime", [_process("time() - process_start_time_seconds{}")], "s"),
    ],
}  # fmt: skip
"""The rows and their panels. A test checks that every metric of the catalogue appears on some panel."""


def _variable(name: str, metric: str, all_value: str) -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable(name)
        .datasource(_SOURCE)
        .query(f"label_values({CATALOGUE[metric].name}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(include_all=True)
        .all_value(all_value)
        .multi(multi=True)
        .current(everything)
    )


def _built(panel: Panel) -> timeseries.Panel | stat.Panel:
    built = timeseries.Panel() if panel.kind == "lines" else stat.Panel().text_mode(BigValueTextMode.VALUE_AND_NAME)
    metrics = [CATALOGUE[name] for name in panel.about]
    built.title(panel.title).unit(panel.unit).datasource(_SOURCE).span(_WIDTH).height(_HEIGHT)
    built.description("\n\n".join(f"{each.name}: {each.help} {each.question}" for each in metrics))
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().ref_id(chr(ord("A") + number)).expr(query.expr).datasource(_SOURCE)
        if query.legend:
            target.legend_format(query.legend)
        built.with_target(target.instant() if panel.kind == "number" else target.range())
    if isinstance(built, timeseries.Panel):
        legend = common.VizLegendOptions().show_legend(show_legend=True)
        built.legend(legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)).fill_opacity(8)
    return built


def dashboard_json() -> str:
    """Return the dashboard as JSON that Grafana can import."""
    board = (
        dashboard.Dashboard("CLIPRerank Streamer")
        .uid("cliprerank-streamer")
        .tags(["cliprerank-streamer", "generated"])
        .editable()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
        .with_variable(_variable("namespace", "build_info", ".*"))
        .with_variable(_variable("job", "build_info", ".+"))
        .with_variable(_variable("group", "build_info", ".*"))
        .with_variable(_variable("instance", "build_info", ".+"))
    )
    for title, panels in ROWS.items():
        board.with_row(dashboard.Row(title))
        for panel in panels:
            board.with_panel(_built(panel))
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"
