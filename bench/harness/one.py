"""Runs one benchmark and writes its figures to a file; `python -m bench` starts this module for each benchmark."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    """Run the benchmark that the arguments name."""
    name, path, size = sys.argv[1:]
    figures = importlib.import_module(f"bench.cases.{name}").measure(size == "quick")
    Path(path).write_text(json.dumps(figures, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
