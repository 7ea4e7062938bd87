"""What keeps `make check` fast, and benchmarks and tests apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("playwright", "redis", "torch")


def imports(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return found


def within(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def test_no_unit_test_imports_a_browser_a_redis_client_or_torch() -> None:
    modules = [f"tests.unit.{path.stem}" for path in sorted((ROOT / "tests" / "unit").glob("*.py"))]
    script = (
        "import importlib, sys\n"
        f"for name in ['conftest', *{modules!r}]:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [each for each in {HEAVY!r} if each in sys.modules]\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("folder", "other"), [("bench", "tests"), ("tests", "bench"), ("streamer", "tests"), ("streamer", "bench")]
)
def test_one_folder_uses_another_only_through_tests_support(folder: str, other: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        used = within(imports(path), other)
        assert used == within(used, "tests.support"), f"{path.relative_to(ROOT)} imports {sorted(used)}"


def test_tests_support_stands_on_the_product_alone() -> None:
    for path in (ROOT / "tests" / "support").glob("*.py"):
        found = imports(path)
        assert within(found, "tests") == within(found, "tests.support"), path.name
