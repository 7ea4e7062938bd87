"""Rules and dashboard: each alert has its tests and its page of the runbook, each metric its panel."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import generate_latest

from streamer.metrics import CATALOGUE, Metrics
from tests.support.dashboards import ALERTS, PANELS

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
CASES = ROOT / "tests" / "data" / "prometheus" / "rules_test.yml"


def promtool(*arguments: str | Path, text: str | None = None) -> None:
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_configuration_are_valid() -> None:
    promtool("check", "rules", "--lint-fatal", PROMETHEUS / "rules.yml")
    promtool("check", "config", "--lint-fatal", PROMETHEUS / "prometheus.yml")


def test_the_metrics_follow_prometheus_own_conventions() -> None:
    promtool("check", "metrics", text=generate_latest(Metrics().registry).decode())


def test_every_case_of_the_rules_holds() -> None:
    promtool("test", "rules", CASES)


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_stays_silent() -> None:
    cases: dict[str, set[bool]] = {name: set() for name in ALERTS}
    for group in yaml.safe_load(CASES.read_text())["tests"]:
        alert, _, told = group["name"].partition(" ")
        if alert not in ALERTS:
            assert group["name"] == "nothing fires when nothing comes in"
            continue
        fires = told.startswith("fires ")
        assert fires or told.startswith("stays silent ")
        [test] = group["promql_expr_test"]
        assert f'alertname="{alert}", alertstate="firing"' in test["expr"]
        assert bool(test["exp_samples"]) is fires
        assert all(f'alertname="{alert}"' in sample["labels"] for sample in test["exp_samples"])
        cases[alert].add(fires)
    assert cases == {name: {True, False} for name in ALERTS}


def test_each_alert_has_a_section_of_the_runbook_and_no_section_is_left_over() -> None:
    sections = re.findall(
        r"^## (\w+)$\n\n\*\*(Page|Ticket)\.\*\*", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE
    )
    assert dict(sections) == {name: rule["labels"]["severity"].capitalize() for name, rule in ALERTS.items()}
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_rules_and_panels_name_metrics_that_exist() -> None:
    known = {metric.name for metric in CATALOGUE.values()}
    rules = (PROMETHEUS / "rules.yml").read_text()
    for name in set(re.findall(r"(?<![\w:])streamer_\w+", rules)) | used_by_panels():
        assert re.sub("_(bucket|sum|count)$", "", name) in known or name in known, name


def used_by_panels() -> set[str]:
    return {name for panel in PANELS for query in panel.queries for name in re.findall(r"streamer_\w+", query)}


def test_no_panel_adds_up_the_metrics_of_several_groups() -> None:
    for panel in PANELS:
        for query in panel.queries:
            for grouped in re.findall(r"(?:sum|max|min|count)(?: by \(([^)]*)\))? \((?=[^\"]*streamer_)", query):
                assert "group" in grouped.split(", "), query


def test_every_metric_of_the_catalogue_is_on_a_panel() -> None:
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in used_by_panels()} | used_by_panels()
    assert {metric.name for metric in CATALOGUE.values()} <= shown


def test_dashboard_and_kubernetes_rules_are_those_of_the_code() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "write_deploy.py", "--check"], check=True)
    written: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "base" / "rules.yaml").read_text())
    assert written["spec"] == yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
