"""Run benchmarks and write results.json, a table in Markdown and plots: `python -m bench [NAME ...]`.

Each benchmark runs in a separate process for a limited time. If one fails, the others still run and the exit code
is 1.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from bench.harness.machine import about
from bench.harness.plots import draw
from bench.harness.report import document, summary
from streamer.local_kafka.jars import class_path

BENCHMARKS = {
    "core": 120,
    "text": 60,
    "images": 90,
    "decode": 120,
    "hot_path": 60,
    "store_cluster": 90,
    "reranking_throughput": 120,
    "reranking_latency": 150,
    "reranking_peers": 330,
    "scaling": 120,
    "embedding": 300,
    "near_duplicates": 90,
    "freshness": 120,
    "hanging_clip": 150,
    "sweep": 420,
}
"""The name of each benchmark, and how many seconds it may take on a quiet machine with two cores."""
_PATIENCE = 4
"""A benchmark is ended only after so many times its seconds: a busy machine makes its figures uncertain, which their
spread shows, and is no reason to have none."""
BY_NAME_ONLY = frozenset({"decode", "hanging_clip", "store_cluster", "sweep"})
"""Benchmarks that run only if they are named, because a full run would take too long with them."""
_TAIL_LINES = 30


@click.command(help=__doc__)
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@click.option("--quick", is_flag=True, help="tiny sizes, to test that the benchmarks run; the figures mean nothing")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("bench-report"), show_default=True
)
def main(names: tuple[str, ...], quick: bool, out: Path) -> None:
    """Run the named benchmarks; without names, all except :data:`BY_NAME_ONLY`."""
    unknown = sorted(set(names) - BENCHMARKS.keys())
    if unknown:
        raise click.BadParameter(f"unknown benchmark {', '.join(unknown)}; available: {', '.join(BENCHMARKS)}")
    chosen = [name for name in BENCHMARKS if name in names or not (names or name in BY_NAME_ONLY)]
    out.mkdir(parents=True, exist_ok=True)
    class_path()  # downloads Kafka where it is missing, so that no benchmark's time includes it
    results: dict[str, Any] = {**about(), "quick": quick, "benchmarks": {}}
    for number, name in enumerate(chosen, start=1):
        click.echo(f"[{number}/{len(chosen)}] {name} ...", nl=False)
        result = results["benchmarks"][name] = run(name, _PATIENCE * BENCHMARKS[name], out, quick=quick)
        click.echo(f" {result['seconds']:.0f} s" + (f", failed: {result['error']}" if "error" in result else ""))
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(document(results), encoding="utf-8")
    pictures = draw(results, out)
    click.echo(f"\n{summary(results)}")
    click.echo(f"{out}: results.json, report.md, {', '.join(path.name for path in pictures)}")
    if any("error" in result for result in results["benchmarks"].values()):
        sys.exit(1)


def run(name: str, limit: float, out: Path, *, quick: bool) -> dict[str, Any]:
    """Run one benchmark in a separate process; return its duration in seconds and its figures or error."""
    log, figures = out / f"{name}.log", out / f"{name}.json"
    figures.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - this module
            [sys.executable, "-m", "bench.harness.one", name, str(figures.resolve()), "quick" if quick else "full"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A separate process group, so that the services that it starts can be killed with it.
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
    seconds = time.monotonic() - began
    if code == 0:
        result = {"seconds": seconds, "figures": json.loads(figures.read_bytes())}
        figures.unlink()
        return result
    click.echo()
    click.echo("\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]))
    return {"seconds": seconds, "error": f"exceeded {limit:.0f} s" if code is None else f"exit code {code}"}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


if __name__ == "__main__":
    main()
