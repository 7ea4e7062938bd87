"""Generate the files of deploy/ that come from code: the Grafana dashboard and the PrometheusRule.

With --check, only compare.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from dashboard import dashboard_json

DEPLOY = Path(__file__).parent.parent / "deploy"
_PROMETHEUS_RULE = """\
# Written by scripts/write_deploy.py from deploy/prometheus/rules.yml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: streamer
spec:
"""


def prometheus_rule() -> str:
    """Return the rules as a resource of the Prometheus operator."""
    rules = (DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    groups = rules[rules.index("groups:") :]
    return _PROMETHEUS_RULE + textwrap.indent(groups, "  ")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a file is out of date")
    check = parser.parse_args().check
    wanted = {
        DEPLOY / "grafana" / "dashboards" / "streamer.json": dashboard_json(),
        DEPLOY / "kubernetes" / "base" / "rules.yaml": prometheus_rule(),
    }
    for path, text in wanted.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.relative_to(DEPLOY.parent)} is out of date; run: make docs")


if __name__ == "__main__":
    main()
