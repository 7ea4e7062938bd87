"""The commands on whole stores: copy, verify, compact, drop-model."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from streamer.cli import cli
from streamer.store import Clip, Position, StoreError, record_format
from streamer.store.lmdb.admin import LmdbAdmin
from tests.support.store_records import (
    MODEL,
    PREFIX,
    clip,
    damaged,
    everything,
    fill,
    many,
    put_unchecked,
    upload,
)  # fmt: skip

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["store", *map(str, arguments)], input=stdin)


@pytest.fixture
def urls(tmp_path: Path, source: LmdbAdmin) -> tuple[str, str]:
    fill(source, many(30))
    return f"lmdb:{tmp_path / 'source'}", f"lmdb:{tmp_path / 'copy'}"


def test_the_commands_copy_and_verify(urls: tuple[str, str], source: LmdbAdmin) -> None:
    text = run("copy", *urls)
    assert (text.exit_code, "30 records copied" in text.output) == (0, True)
    report = json.loads(run("copy", *urls, "--json").output)
    assert (report["present"], report["written"], report["mended"]) == (30, 0, 0)
    assert "27" in run("verify", "--store", urls[1]).output
    figures = json.loads(run("verify", "--store", urls[1], "--json").output)
    assert figures["models"][MODEL]["clips"] == 27
    both = run("verify", "--store", urls[0], "--against", urls[1])
    assert (both.exit_code, "30 identical" in both.output) == (0, True)
    assert json.loads(run("verify", "--store", urls[0], "--against", urls[1], "--json").output)["same"] == 30

    put_unchecked(source, damaged(upload(1, clip_id="[bold]broken")))
    for arguments in (
        ("copy", *urls),
        ("verify", "--store", urls[0]),
        ("verify", "--store", urls[0], "--against", urls[1]),
    ):
        found = run(*arguments)
        assert (found.exit_code, "'[bold]broken'" in found.output) == (1, True)
    assert run("verify", "--store", urls[1], "--against", urls[0]).exit_code == 0


def test_a_copy_from_nowhere_or_from_no_engine_ends_in_one_line(tmp_path: Path) -> None:
    for source, complaint in ((f"lmdb:{tmp_path / 'none'}", "no such store"), ("what", "unsupported store scheme")):
        result = run("copy", source, f"lmdb:{tmp_path / 'copy'}")
        assert isinstance(result.exception, StoreError)
        assert complaint in str(result.exception)
    assert not (tmp_path / "copy").exists()


def test_the_command_compacts(urls: tuple[str, str], tmp_path: Path, source: LmdbAdmin) -> None:
    done = run("compact", "--store", urls[0], "--to", tmp_path / "compact")
    assert (done.exit_code, "after" in done.output) == (0, True)
    copied = LmdbAdmin(tmp_path / "compact")
    assert everything(copied) == everything(source)
    copied.close()
    assert isinstance(run("compact", "--store", urls[0]).exception, StoreError)
    source.close()
    assert run("compact", "--store", urls[0]).exit_code == 0


def test_a_model_is_dropped_only_when_that_is_meant(urls: tuple[str, str], source: LmdbAdmin) -> None:
    at = ("drop-model", "--store", urls[0])
    before = everything(source)
    unknown = run(*at, "model-x", "--yes")
    assert (unknown.exit_code, f"stored: {MODEL}" in unknown.output) == (1, True)
    alone = run(*at, MODEL, "--yes")
    assert (alone.exit_code, "the only stored model" in alone.output) == (1, True)
    source.register({record_format.model_prefix("model-b"): "model-b"})
    recent = Clip("recent", dt.datetime.now(dt.UTC), Position.of("log", 1), 1, clip("c").vectors, clip("c").times_ms)
    source.put(
        [upload(1)._replace(key=record_format.key(PREFIX, "recent"), value=record_format.encode(recent, "int8"))]
    )
    young = run(*at, MODEL, "--yes")
    assert (young.exit_code, "within the last day" in young.output) == (1, True)
    dry = run(*at, MODEL, "--dry-run")
    assert (dry.exit_code, "28 clips and 3 tombstones" in dry.output) == (0, True)
    assert everything(source).items() >= before.items()
    source.remove([record_format.key(PREFIX, "recent")])

    for answer in ("", "n\n"):
        assert run(*at, MODEL, stdin=answer).exit_code == 1
    assert everything(source) == before
    assert run(*at, MODEL, stdin="y\n").exit_code == 0
    assert everything(source) == {}
    assert source.models() == {record_format.model_prefix("model-b"): "model-b"}


def test_a_model_in_use_is_dropped_where_that_is_said(urls: tuple[str, str], source: LmdbAdmin) -> None:
    assert run("drop-model", "--store", urls[0], MODEL, "--yes", "--even-if-in-use").exit_code == 0
    assert everything(source) == {}
