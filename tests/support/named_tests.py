"""The functions of a test module, by which pages that name tests are held to them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[2]


@cache
def functions_of(path: str) -> set[str]:
    """Return the names of all functions in a module, given by its path in the repository. Raises OSError."""
    tree = ast.parse((_ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
