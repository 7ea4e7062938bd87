"""Draws a Mermaid diagram as SVG while the site is built, so that its pages load no script for it."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import mmdr
from pymdownx.superfences import SuperFencesException  # type: ignore[import-untyped]  # it has no types

_NAME = re.compile(r"\bmerman\b")
"""The id that the renderer gives every drawing."""
_LABEL_BACKGROUND = "hsl(-120, 0%, 80%)"
"""The renderer's grey behind the text on an arrow, which hides the ends of a longer text in another font."""


def fence(source: str, _language: str, _css_class: str, _options: Any, _page: Any, **_more: Any) -> str:
    """Return the SVG of one fenced block: a formatter as pymdownx's superfences want it.

    Each drawing gets a name of its own, made from its source, since the drawings of one page share a document. Raises
    :class:`SuperFencesException`, which alone ends the build, where the source is no Mermaid diagram.
    """
    name = f"diagram-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    try:
        drawing = mmdr.render(source).svg().replace(_LABEL_BACKGROUND, "#fff")
    except ValueError as error:
        raise SuperFencesException(f"{error}: {source}") from error
    return f'<div class="diagram">{_NAME.sub(name, drawing)}</div>'
