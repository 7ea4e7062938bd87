"""What keeps `make check` fast, and benchmarks and tests apart."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the full names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return frozenset(found)


def within(names: frozenset[str], package: str) -> frozenset[str]:
    return frozenset(name for name in names if name == package or name.startswith(f"{package}."))


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
