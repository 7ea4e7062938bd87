"""The command line itself: help, version, completion, and the store's commands on a real store."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from streamer import __version__
from streamer.cli import cli
from streamer.settings import COMMANDS, names_of
from streamer.store import Clip, Position, open_store


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_version_is_printed_by_the_command_and_by_python_m() -> None:
    assert __version__ in run("--version")
    done = subprocess.run([sys.executable, "-m", "streamer", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout


@pytest.mark.parametrize("command", ["embed", "rerank", "demo"])
def test_help_names_every_setting_of_a_command_and_its_variable(command: str) -> None:
    text = "".join(run(command, "--help").split())
    for name in names_of(COMMANDS[command]):
        assert f"--{name.replace('_', '-')}" in text
        assert f"STREAMER_{name.upper()}" in text


@pytest.mark.parametrize("command", ["apply", "check"])
def test_topics_have_no_option_for_groups_which_share_them(command: str) -> None:
    text = run("topics", command, "--help")
    assert "--topic-prefix" in text
    assert "--group" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(shell: str) -> None:
    assert "_STREAMER_COMPLETE" in run("completion", shell)


def test_choices_are_completed() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("streamer")],
        env={
            "_STREAMER_COMPLETE": "bash_complete",
            "COMP_WORDS": "streamer rerank --normalization z",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "zscore" in done.stdout


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"lmdb:{tmp_path / 'store'}"
    opened = open_store(url, model_id="m1", dim=4)
    at = dt.datetime(2026, 11, 24, 10, tzinfo=dt.UTC)
    vectors = np.eye(2, 4, dtype=np.float32)
    opened.put([Clip("c1", at, Position.of("log", 1), 1500, vectors, np.array([0, 500], np.uint32))])
    opened.delete("gone", at, Position.of("log", 2))
    opened.close()
    return url


def test_store_stats_counts_models_and_tombstones(store: str) -> None:
    text = run("store", "stats", "--store", store)
    assert "m1" in text
    assert "1 tombstones" in text


def test_store_get_shows_a_record(store: str) -> None:
    shown = json.loads(run("store", "get", "c1", "--store", store))
    assert shown["clip_id"] == "c1"
    assert shown["uploaded_at"].startswith("2026-11-24T10:00:00")
    assert (shown["vectors"], shown["dim"], shown["precision"]) == (2, 4, "float16")
    assert shown["times_ms"] == [0, 500]


@pytest.mark.parametrize("arguments", [("get", "none"), ("get", "gone"), ("get", "c1", "--model-id", "m2")])
def test_store_get_names_what_is_missing(store: str, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, ["store", *arguments, "--store", store])
    assert result.exit_code == 1
    assert "is not in" in result.output


def test_a_missing_store_is_not_created(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamer", "store", "stats", "--store", f"lmdb:{tmp_path / 'none'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"streamer: {tmp_path / 'none'}: no such store\n"
    assert not (tmp_path / "none").exists()
