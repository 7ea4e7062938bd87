"""The rules' alerts and the dashboard's queries, as tests read them from deploy/."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


@dataclass(frozen=True, slots=True)
class BoardPanel:
    """A panel: its title, and its queries with Grafana's variables in them."""

    title: str
    queries: tuple[str, ...]
    legends: tuple[str, ...]
    unit: str

    def resolved(self, window: str) -> list[str]:
        """Return the queries as Grafana sends them where everything is selected."""
        values = {"$namespace": ".*", "$job": ".+", "$group": ".*", "$instance": ".+", "$__rate_interval": window}
        found = []
        for query in self.queries:
            text = query
            for name, value in values.items():
                text = text.replace(name, value)
            assert "$" not in text, text
            found.append(text)
        return found


def _panels() -> list[BoardPanel]:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "streamer.json").read_bytes())
    return [
        BoardPanel(
            panel["title"],
            tuple(target["expr"] for target in panel["targets"]),
            tuple(target.get("legendFormat", "") for target in panel["targets"]),
            panel["fieldConfig"]["defaults"]["unit"],
        )
        for panel in board["panels"]
        if panel["type"] != "row"
    ]


PANELS = _panels()
