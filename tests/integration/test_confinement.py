"""What a decoder cannot do whatever its file makes of it, as root and as an ordinary user, an attempt at a time."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import Any

import pytest

from streamer.video.isolation import landlock
from tests.support import attempts, ordinary

PROGRAM = "from tests.support.attempts import main; main()"

USERS = [
    pytest.param(True, id="nobody"),
    pytest.param(False, id="root", marks=pytest.mark.skipif(os.geteuid() != 0, reason="the tests are not run as root")),
]


@cache
def outcomes(*, as_nobody: bool) -> dict[str, Any]:
    """Make all attempts at once: what came of each, by kind of process."""
    with ordinary.open_folder() as folder:
        told: dict[str, Any] = json.loads(ordinary.run("-c", PROGRAM, folder, as_nobody=as_nobody))
    return told


@pytest.mark.parametrize("as_nobody", USERS)
@pytest.mark.parametrize("name", attempts.ATTEMPTS)
def test_a_decoder_that_a_file_has_taken_over_cannot(name: str, as_nobody: bool) -> None:
    told = outcomes(as_nobody=as_nobody)
    if name not in attempts.NEEDS_PRIVILEGE:
        assert told["plain"][name] == "done", "a process that is not confined can"
    assert told["confined"][name] == "EPERM"


@pytest.mark.parametrize("as_nobody", USERS)
@pytest.mark.parametrize(("abi", "names"), attempts.LANDLOCK_DENIES.items())
def test_landlock_denies_files_tcp_and_signals_without_the_filter(
    abi: int, names: tuple[str, ...], as_nobody: bool
) -> None:
    if landlock.abi() < abi:
        pytest.skip(f"the kernel's Landlock is ABI {landlock.abi()}")
    told = outcomes(as_nobody=as_nobody)
    assert {name: told["landlock"][name] for name in names} == {
        name: "EPERM" if name == "kill_the_service" else "EACCES" for name in names
    }
