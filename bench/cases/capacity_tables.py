"""Generates the tables of docs/capacity.md from the measurements of `make capacity`."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

CLIPS = {"1 M": 10**6, "100 M": 10**8, "10 G": 10**10}
NODE_BYTES = 64 << 30
USABLE = 0.75
"""Share of a node's memory that records may use; the rest is for replication, fragmentation and the system."""
LEAST_PRIMARIES = 3
"""With fewer primaries there is no majority that can declare one of them failed."""
QUERIES_A_SECOND = 1_000
NEGLIGIBLE = 0.002
"""Tolerated loss of mean average precision; as much as one query in five hundred whose average precision drops to 0."""
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def tables(path: Path) -> dict[str, Callable[[], str]]:
    """Return, for each table of the page, the function that writes it from the file of figures."""

    def of(write: Callable[[Mapping[str, Any]], str]) -> Callable[[], str]:
        return lambda: write(json.loads(path.read_bytes()))

    return {
        "measured": of(_measured),
        "records": of(_records),
        "stored": of(_stored),
        "queries": of(_queries),
        "sizes": of(_sizes),
        "precision": of(_precision),
    }


def _measured(results: Mapping[str, Any]) -> str:
    machine, shape = results["machine"], results["figures"]["shape"]
    return (
        f"Measured on {results['date'][:10]} at commit {results['commit']}: {machine['cores']} cores of "
        f"{machine['processor']}, {machine['kernel']}, servers and reader on this one machine; clips of "
        f"{shape['vectors']} vectors of length {shape['dim']}, {shape['candidates']} candidates a query.\n"
    )


def _records(results: Mapping[str, Any]) -> str:
    rows = results["figures"]["record_bytes"]
    return _table(
        ("vectors a clip", "length", "float32", "float16", "int8"),
        ([row["vectors"], row["dim"], *(f"{row[each]:,}" for each in _precisions(results))] for row in rows),
    )


def _stored(results: Mapping[str, Any]) -> str:
    shape = results["figures"]["shape"]
    plain = next(row for row in results["figures"]["record_bytes"] if row.items() >= _shape(shape).items())
    rows = []
    for precision in _precisions(results):
        size = plain[precision]
        lmdb, cluster = (results["figures"]["stored"][precision][name]["bytes_a_clip"] for name in ("lmdb", "cluster"))
        rows.append(
            [precision, f"{size:,}", f"{lmdb:,.0f} ({lmdb / size:.2f} x)", f"{cluster:,.0f} ({cluster / size:.2f} x)"]
        )
    return _table(("precision", "record", "in LMDB, on disk", "in Valkey, in memory"), rows)


def _queries(results: Mapping[str, Any]) -> str:
    rows = []
    for precision in _precisions(results):
        stored = results["figures"]["stored"][precision]
        lmdb, cluster = stored["lmdb"], stored["cluster"]
        rows.append(
            [
                precision,
                f"{cluster['bytes_out_a_query'] / 1e6:.2f} MB",
                f"{cluster['bytes_in_a_query'] / 1e3:.1f} kB",
                f"{1e3 * cluster['servers_cpu_s_a_query']:.2f} ms",
                f"{1e3 * cluster['reader_cpu_s_a_query']:.2f} ms",
                f"{1e3 * lmdb['reader_cpu_s_a_query']:.2f} ms",
                f"{8e-9 * QUERIES_A_SECOND * cluster['bytes_out_a_query']:.1f} Gbit/s",
                math.ceil(QUERIES_A_SECOND * cluster["servers_cpu_s_a_query"]),
            ]
        )
    head = (
        "precision", "received from the servers", "sent to them", "servers' CPU", "reader's CPU",
        "reader's CPU with LMDB", f"network at {QUERIES_A_SECOND:,} queries/s", "server cores at that rate",
    )  # fmt: skip
    return _table(head, rows)


def _sizes(results: Mapping[str, Any]) -> str:
    rows = []
    for name, count in CLIPS.items():
        for precision in _precisions(results):
            stored = results["figures"]["stored"][precision]
            lmdb, memory = (count * stored[engine]["bytes_a_clip"] for engine in ("lmdb", "cluster"))
            nodes = 2 * max(LEAST_PRIMARIES, math.ceil(memory / (USABLE * NODE_BYTES)))
            rows.append([name, precision, in_words(lmdb), in_words(memory), in_words(2 * memory), f"{nodes:,}"])
    head = (
        "clips", "precision", "LMDB, disk", "cluster, memory", "with one replica each",
        f"nodes of {NODE_BYTES >> 30} GiB, replicas included",
    )  # fmt: skip
    return _table(head, rows)


def _precision(results: Mapping[str, Any]) -> str:
    figures = results["figures"]["precision"]
    told = (
        f"{figures['queries']} queries over {figures['clips']} rendered clips, vectors of length {figures['dim']}; the "
        f"engine's own order has a mean average precision of {figures['initial_map']:.4f}."
    )
    rows = [
        [
            precision,
            f"{each['map']:.4f}",
            f"{each['loss']:+.5f} [{each['loss_low']:+.5f} .. {each['loss_high']:+.5f}]",
            f"{each['largest_score_error']:.1e}",
            f"{100 * each['same_first']:.1f} %",
        ]
        for precision, each in ((precision, figures[precision]) for precision in _precisions(results))
    ]
    head = (
        "precision",
        "mean average precision",
        "lost against float32",
        "largest error of a frame score",
        "same top result",
    )
    return f"{told}\n\n{_table(head, rows)}\n{_is_int8_enough(figures['int8'])}\n"


def _is_int8_enough(int8: Mapping[str, float]) -> str:
    worst = max(0.0, int8["loss_high"])
    if worst <= NEGLIGIBLE:
        return f"In this measurement int8 is enough: at the worse end of its interval it loses {worst:.5f}."
    return f"In this measurement int8 may lose up to {worst:.4f}. Use float16 where that matters."


def in_words(size: float) -> str:
    """Return a number of bytes with three digits and a decimal unit."""
    power = min(int(math.log(max(size, 1), 1000)), len(_UNITS) - 1)
    return f"{size / 1000**power:.3g} {_UNITS[power]}"


def _precisions(results: Mapping[str, Any]) -> list[str]:
    return list(results["figures"]["stored"])


def _shape(shape: Mapping[str, Any]) -> dict[str, Any]:
    return {name: shape[name] for name in ("vectors", "dim")}


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    columns = [str(each) for each in head]
    lines = [columns, ["---"] * len(columns), *([str(each) for each in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
