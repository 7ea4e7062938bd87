"""All alerts, from Prometheus' rules."""

from __future__ import annotations

from pathlib import Path

import yaml

from reference.sections import table

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yml"


def markdown() -> str:
    """Return a table of the alerts: name, severity, expression, and duration."""
    alerts = [
        rule
        for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    return table(
        ("alert", "severity", "fires when", "for", "runbook"),
        (
            (
                f"`{alert['alert']}`",
                alert["labels"]["severity"],
                f"`{' '.join(alert['expr'].split())}`",
                alert.get("for", "at once"),
                f"[what to do](../runbook.md#{alert['alert'].lower()})",
            )
            for alert in alerts
        ),
    )
