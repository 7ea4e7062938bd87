"""One benchmark in this process, its figures into a file: what `python -m bench` starts for each."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    """Measure what the arguments name."""
    name, path, size = sys.argv[1:]
    figures = importlib.import_module(f"bench.{name}").measure(size == "quick")
    Path(path).write_text(json.dumps(figures, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
