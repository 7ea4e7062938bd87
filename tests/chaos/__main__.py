"""`python -m chaos [--seed N] [--small] [--out FOLDER]`: exit code 0 only if all faults struck and all was kept."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tests.chaos.plan import FULL, SMALL
from tests.chaos.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


def main() -> int:
    """Run once, report, and keep the logs of a run that failed."""
    arguments = _arguments()
    folder: Path = (arguments.out / f"seed-{arguments.seed}").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console = Console(width=120)
    console.print(f"Chaos with seed {arguments.seed}; logs in {folder}")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _standard_error_in(folder / "harness.log"):
            report = Run(arguments.seed, SMALL if arguments.small else FULL, folder).run()
    except BaseException:
        console.print(f"[red]The run broke off[/]; logs and data are in {folder}")
        raise
    report.show(console)
    report.write(folder / "report.json")
    if report.passed:
        for name in ("kafka", "store", "clean-store", "clips"):
            shutil.rmtree(folder / name)
        console.print(f"[green]Every fault struck, every guarantee was kept[/]: {folder}/report.json")
        return 0
    console.print(f"[red]FAILED[/]; logs and data are in {folder}, all findings in its report.json")
    return 1


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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description="Break the service, and count what came of it.")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the inputs")
    parser.add_argument("--small", action="store_true", help="the slice that belongs to the tests")
    parser.add_argument("--out", type=Path, default=Path("build/chaos"), help="takes a folder for the run")
    return parser.parse_args()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
