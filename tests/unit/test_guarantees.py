"""Each row of docs/guarantees.md names a test that exists, and each fault of the chaos suite has a row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamer.metrics import CATALOGUE
from tests.chaos.kinds import Fault
from tests.chaos.report import POINT
from tests.support.named_tests import functions_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
COLUMNS = ["fault", "what happens", "lost or duplicated", "how it shows", "shown by"]
CHAOS = "chaos: "


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


ROWS = [cells(line) for line in PAGE.splitlines() if line.startswith("|") and not line.startswith("| ---")]
FAULTS = [row for row in ROWS if row != COLUMNS]


def named(row: list[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", row[-1])


def test_every_table_has_the_same_columns() -> None:
    assert ROWS.count(COLUMNS) == len(re.findall(r"^\| ---", PAGE, re.MULTILINE)) >= 6
    assert {len(row) for row in ROWS} == {len(COLUMNS)}


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row[0][:60])
def test_every_row_is_complete_and_its_tests_exist(row: list[str]) -> None:
    assert all(row)
    assert named(row)
    for name in named(row):
        if name.startswith(CHAOS):
            assert name.removeprefix(CHAOS) in {*Fault, POINT}
        else:
            path, _, function = name.partition("::")
            assert function.startswith("test_")
            assert function in functions_of(path)


def test_every_kind_of_fault_of_the_chaos_suite_has_a_row() -> None:
    shown = {name.removeprefix(CHAOS) for row in FAULTS for name in named(row) if name.startswith(CHAOS)}
    assert shown == {*Fault, POINT}


def test_every_metric_alert_and_condition_of_the_page_exists() -> None:
    told = " ".join(row[3] for row in FAULTS)
    for name in re.findall(r"`(streamer_\w+)", told):
        assert name in {metric.name for metric in CATALOGUE.values()}, name
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    for name in re.findall(r"\bStreamer[A-Z]\w+", told):
        assert f"alert: {name}\n" in rules, name
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    for listed in re.findall(r"conditions? ((?:`\w+`(?:, | or | and )?)+)", told):
        for name in re.findall(r"`(\w+)`", listed):
            assert f"| {name} | " in runbook, name
