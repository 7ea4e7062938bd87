"""`python -m tests.chaos [--store cluster] [--seed N] [--count N]`: exit code 0 if all struck and all was kept."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tests.chaos.kinds import CLUSTER, LMDB, TRAITS, Fault, kinds_for
from tests.chaos.machine import can_limit_processes, can_mount
from tests.chaos.run import Run
from tests.chaos.scales import FULL, SCALES
from tests.chaos.service_faults import c_compiler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from tests.chaos.plan import Scale

NEEDS: Mapping[Fault, tuple[Callable[[], object], str]] = {
    Fault.CLOCK: (c_compiler, "a C compiler (on Debian: apt-get install gcc)"),
    Fault.DISK_FULL: (can_mount, "root, to mount a small disk"),
    Fault.FEW_PROCESSES: (can_limit_processes, "an ordinary user, or root and a cgroup with a controller of processes"),
}
"""What a kind needs of the machine, and how that is found out."""


def main() -> int:
    """Run once, or seed after seed for so many hours and until the first difference."""
    arguments = _arguments()
    console = Console(width=120)
    signal.signal(signal.SIGTERM, _interrupt)
    until = time.monotonic() + 3_600 * arguments.hours
    seed = arguments.seed
    while _run(seed, _scale(arguments, seed, console), arguments.out, console):
        seed += 1
        if time.monotonic() >= until:
            console.print(f"{seed - arguments.seed} run(s), and no difference")
            return 0
    return 1


def _run(seed: int, scale: Scale, out: Path, console: Console) -> bool:
    """Run once, report, and keep the logs of a run that failed."""
    folder: Path = (out / f"seed-{seed}").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console.print(f"Chaos with seed {seed}, {scale.count} faults; logs in {folder}")
    try:
        with _standard_error_in(folder / "harness.log"):
            report = Run(seed, scale, folder).run()
    except BaseException:
        console.print(f"[red]The run broke off[/]; logs and data are in {folder}")
        raise
    report.show(console)
    report.write(folder / "report.json")
    if not report.passed:
        console.print(f"[red]FAILED[/]; logs and data are in {folder}, all findings in its report.json")
        return False
    for name in ("kafka", "store", "clean-store", "clips"):
        shutil.rmtree(folder / name)
    console.print(f"[green]Every fault struck, every guarantee was kept[/]: {folder}/report.json")
    return True


def _scale(arguments: argparse.Namespace, seed: int, console: Console) -> Scale:
    full, small = SCALES[arguments.store]
    if arguments.small:
        return small
    possible = kinds_for(arguments.store)
    kinds = set(arguments.kinds or possible)
    for fault in kinds - possible:
        console.print(f"[red]Left out[/]: {fault}. It needs --store {TRAITS[fault].store}.", highlight=False)
    kinds &= possible
    for fault in kinds & NEEDS.keys():
        is_there, what = NEEDS[fault]
        if not is_there():
            console.print(f"[red]Left out[/]: {fault}. It needs {what}.", highlight=False)
            kinds.remove(fault)
    count = full.count if arguments.count is None else arguments.count
    if kinds == possible and count >= full.count:
        return full
    return full.reduced(seed, count, kinds)


@contextmanager
def _standard_error_in(path: Path) -> Iterator[None]:
    """Let the clients' own words about brokers that we kill, which come by the hundred, go to a file."""
    kept = os.dup(2)
    with path.open("wb") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _kinds(text: str) -> list[Fault]:
    try:
        return [Fault[name.strip().upper()] for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error}: one of {', '.join(each.name.lower() for each in Fault)}") from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description="Break the service, and count what came of it.")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the inputs")
    parser.add_argument("--store", choices=(LMDB, CLUSTER), default=LMDB, help="where the services keep the vectors")
    parser.add_argument("--count", type=int, help=f"faults of a run, {FULL.count} at most; all of them by default")
    parser.add_argument("--kinds", type=_kinds, help="only these, separated by commas: kill,truncated")
    parser.add_argument("--hours", type=float, default=0.0, help="go on with new seeds for so long")
    parser.add_argument("--small", action="store_true", help="a slice of a few minutes")
    parser.add_argument("--out", type=Path, default=Path("build/chaos"), help="takes a folder for each run")
    return parser.parse_args()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
