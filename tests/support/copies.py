"""A store copied to a cluster and back by the real command, which is killed on the way."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from streamer.store.opening import open_admin
from tests.support.store_records import digest, fill, many
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_WAIT_S = 600


def there_and_back(folder: Path, cluster: str, count: int, dim: int, say: Callable[[str], None]) -> None:
    """Copy ``count`` records from LMDB to a cluster and to LMDB again, with two kills on either way."""
    first, last = f"lmdb:{folder / 'first'}", f"lmdb:{folder / 'last'}"
    with contextlib.closing(open_admin(first, create=True)) as opened:
        fill(opened, many(count, dim=dim))
        expected = digest(opened)
    say(f"{first}: {expected}")
    assert expected[0] == count
    for source, target in ((first, cluster), (cluster, last)):
        began = time.monotonic()
        kills = [kill_at(source, target, stage, count // 2) for stage in ("copy", "verify")]
        report = copied(source, target)
        assert (report["resumed"], report["mended"]) == (2, 0)
        # Where it went on, some may have come twice.
        assert min(report["read"], report["compared"], report["written"] + report["present"]) >= count
        assert report["damage"]["count"] == 0
        with contextlib.closing(open_admin(target)) as opened:
            found = digest(opened)
            assert opened.note() is None
        say(f"{target}: {found}, killed at {kills}, {time.monotonic() - began:.0f} s in all, {report}")
        assert found == expected
        verify = command("verify", "--store", source, "--against", target, "--json")
        compared = json.loads(subprocess.run(verify, check=True, capture_output=True, timeout=_WAIT_S).stdout)
        assert compared["same"] == count


def command(name: str, *arguments: str) -> list[str]:
    """Return the command line of ``streamer store``."""
    return [sys.executable, "-m", "streamer", "store", name, *arguments]


def copied(source: str, target: str) -> dict[str, Any]:
    """Copy a store to the end; returns the report."""
    done = subprocess.run(command("copy", source, target, "--json"), check=True, capture_output=True, timeout=_WAIT_S)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def kill_at(source: str, target: str, stage: str, records: int) -> dict[str, int]:
    """Begin or go on with a copy, and kill it once it has come so far; returns how far it has really come."""
    field = {"copy": "read", "verify": "compared"}[stage]
    process = subprocess.Popen(command("copy", source, target), stdout=subprocess.DEVNULL)
    try:
        with contextlib.closing(open_admin(target, create=True)) as opened:

            def has_come_so_far() -> bool:
                noted = json.loads(opened.note() or b"{}")
                reached: bool = noted.get("stage") == stage and noted[field] >= records
                assert reached or process.poll() is None, "the copy has ended before it could be killed"
                return reached

            wait_until(has_come_so_far, f"{records} records in stage {stage}", seconds=_WAIT_S, pause=0.001)
            process.kill()
            process.wait()
            noted = json.loads(opened.note() or b"{}")
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -9
    assert noted["stage"] == stage
    return {"read": noted["read"], "compared": noted["compared"]}
