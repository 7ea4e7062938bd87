"""The slice of the chaos suite that belongs to every run of the tests; `make chaos` is the whole of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEED = 4
TIMEOUT_S = 420
"""Two minutes are usual; a machine that does other work as well takes longer."""


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_nothing_is_lost_or_doubled_when_processes_brokers_and_the_store_fail(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--small", "--seed", str(SEED), "--out", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / f"seed-{SEED}" / "report.json").read_bytes())
    fired = {kind: count["fired"] for kind, count in report["faults"].items() if count["planned"]}
    assert fired == {
        "kill -9 of a service": 3,
        "SIGSTOP beyond the session timeout": 1,
        "store not writable": 1,
        "file descriptors scarce": 1,
        "a decoder killed, as for memory": 1,
        "kill -9 of a broker": 1,
    }
    assert report["counts"]["valid uploads"] > 200  # faults publish some besides, so that they are seen to strike
    assert report["counts"]["valid query events"] > 500  # the last ones ask for every clip when all is well again
