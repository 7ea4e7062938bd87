"""What keeps `make check` fast, benchmarks and tests apart, and modules short."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
MAX_LINES = 450
"""A module that needs more is two."""


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


def test_no_module_is_long() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = {name: (ROOT / name).read_bytes().count(b"\n") for name in listed.splitlines()}
    assert "tests/unit/test_inner_loop.py" in lines
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_programs_in_strings_import_modules_that_exist() -> None:
    """No tool follows a module that is renamed into the text that another interpreter is given."""
    named = re.compile(r"(?:\b(?:from|import) |, )((?:streamer|bench|tests|training)(?:\.\w+)+)")
    found = {
        (str(path.relative_to(ROOT)), name)
        for folder in ("streamer", "bench", "tests", "training", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "test_walk.py"  # which makes modules
        for text in strings(path)
        if re.search(r"\bimport \w", text)
        for name in named.findall(text)
    }
    assert ("bench/cases/embedding.py", "bench.harness.workload") in found
    assert [each for each in sorted(found) if importlib.util.find_spec(each[1]) is None] == []


def strings(path: Path) -> Iterator[str]:
    """Yield the string constants of a file but for those that stand alone, which are docstrings."""
    tree = ast.parse(path.read_bytes())
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value
