"""The picture of streamer's modules and folders, and of which imports which: drawn from the code, layer by layer."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import grimp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
_PACKAGE = "streamer"
_CONTRACT = "Dependencies point downwards"

Arrow = tuple[str, str]
"""Who imports, and what it imports."""


def markdown() -> str:
    """Return the picture as a Mermaid diagram."""
    return picture(layers(), arrows())


def layers() -> list[list[str]]:
    """Return the names in each layer of import-linter's contract, the top layer first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = (each for each in contracts if each["name"] == _CONTRACT)
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def arrows() -> set[Arrow]:
    """Return the imports between the modules and folders at the top of streamer, as grimp finds them in the code.

    Imports for type checking alone are among them, as in import-linter's contract.
    """
    graph = grimp.build_graph(_PACKAGE, cache_dir=None)
    found = {
        (_top(importer), _top(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    return {(one, other) for one, other in found if one and other and one != other}


def _top(module: str) -> str:
    """Return the name below the package; nothing for the package itself, which holds only its version."""
    return module.removeprefix(_PACKAGE).removeprefix(".").partition(".")[0]


def reduced(imports: set[Arrow]) -> set[Arrow]:
    """Leave out each arrow that a longer path replaces. Raises ValueError where the imports make a circle."""
    below: dict[str, set[str]] = {}
    for one, other in imports:
        below.setdefault(one, set()).add(other)
    reached: dict[str, set[str]] = {}

    def reach(name: str, path: tuple[str, ...] = ()) -> set[str]:
        if name in path:
            raise ValueError(f"import circle: {' -> '.join((*path, name))}")
        if name not in reached:
            nearest = below.get(name, set())
            reached[name] = nearest.union(*(reach(each, (*path, name)) for each in nearest))
        return reached[name]

    for name in below:
        reach(name)
    return {
        (one, other)
        for one, other in imports
        if not any(other in reached[between] for between in below[one] if between != other)
    }


def picture(order: Sequence[Sequence[str]], imports: set[Arrow]) -> str:
    """Draw the reduced imports, and a frame around each layer. Raises ValueError for a name in no layer."""
    places: Mapping[str, int] = {name: number for number, layer in enumerate(order) for name in layer}
    missing = {name for arrow in imports for name in arrow} - places.keys()
    if missing:
        raise ValueError(f"in no layer: {', '.join(sorted(missing))}")
    lines = ["```mermaid", "flowchart TB"]
    for number, layer in enumerate(order):
        nodes = [f"    {name}[{_label(name)}]" for name in layer]
        lines += [f'  subgraph layer{number}[" "]', *nodes, "  end"]
    lines += [f"  {one} --> {other}" for one, other in sorted(reduced(imports))]
    return "\n".join([*lines, "```"])


def _label(name: str) -> str:
    return f"{name}/" if (ROOT / _PACKAGE / name).is_dir() else f"{name}.py"
