"""What the modules of tests/unit import, seen in a process of its own, since this one may have imported anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("playwright", "redis", "torch")


def test_no_unit_test_imports_a_browser_a_redis_client_or_torch() -> None:
    paths = sorted(path.relative_to(ROOT) for path in (ROOT / "tests" / "unit").rglob("*.py"))
    modules = [".".join(path.with_suffix("").parts) for path in paths]
    script = (
        "import importlib, sys\n"
        f"for name in ['conftest', *{modules!r}]:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [each for each in {HEAVY!r} if each in sys.modules]\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
