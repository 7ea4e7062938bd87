"""Commands that score end with exit code 2 where no model is named: a toy must not answer real users by accident."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from streamer.cli import main

if TYPE_CHECKING:
    from pathlib import Path

RUN = ("--run", "run", "--topics", "topics")
COMMANDS = {
    "embed": (),
    "rerank": (),
    "benchmark": ("--out", "report"),
    "match fit": ("--out", "bank"),
    "probe": (),
    "replay": (*RUN, "--out", "reranked"),
    "sweep": (*RUN, "--qrels", "qrels"),
    "pilot": ("--events", "run"),
    "demo": ("--clips", "clips", "--queries", "run"),
    "explain": ("--query", "a query", "--clip", "a"),
}


@pytest.mark.parametrize("model", [(), ("--model", "")], ids=["none", "empty"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_scores_wants_a_model_and_says_how_to_name_one(
    command: str,
    model: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("run", "topics", "qrels"):
        (tmp_path / name).touch()
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMER_MODEL", "")
    monkeypatch.setattr(sys, "argv", ["streamer", *command.split(), *COMMANDS[command], *model])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("streamer: model (--model, STREAMER_MODEL): name one, ")
    assert "--model demo" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "qrels", "run", "topics"]


@pytest.mark.parametrize("given", [("--clips", "clips"), ("--queries", "run")])
def test_the_demo_takes_clips_and_queries_together(
    given: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run").touch()
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["streamer", "demo", "--model", "demo", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--clips and --queries must be given together" in capsys.readouterr().err
