"""Plots for reports: matplotlib's SVG, adapted for embedding in a page.

Its colours become the variables of the page's stylesheet, so that plots are dark where the page is.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

from streamer.evaluation.measures import missing_extra
from streamer.evaluation.page import Picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

OLD, NEW, LOSS, QUIET = "#6c7a89", "#2563eb", "#b5432e", "#dfe4ea"
"""The pages' colours: base, reranked, worse, background."""
LINE = "#1c2530"
"""The colour of axes, and of the line that others are compared with."""
STYLES: tuple[dict[str, Any], ...] = (
    {"color": NEW, "linestyle": "-"},
    {"color": LOSS, "linestyle": "--"},
    {"color": OLD, "linestyle": ":"},
)
"""How several curves of one plot differ: not in their colour alone."""
_VARIABLES = {
    OLD: "var(--old)",
    NEW: "var(--new)",
    LOSS: "var(--bad)",
    QUIET: "var(--line)",
    LINE: "var(--ink)",
    "#000000": "var(--ink)",
    "#ffffff": "none",
}
_COLOUR = re.compile("|".join(_VARIABLES))
_STYLE = re.compile(r'style="[^"]*"')
"""Only there are colours; names of topics may look like one."""


def short(name: str) -> str:
    """Return a name of an axis' tick, cut where it would leave no room for the plot; the page's tables have all."""
    return name if len(name) <= MOST_CHARS else name[: MOST_CHARS - 1] + "\N{HORIZONTAL ELLIPSIS}"


MOST_CHARS = 40
"""Most characters of a tick's name."""


def picture(
    draw: Callable[[Axes], None], *, name: str, caption: str, size: tuple[float, float] = (8.5, 3.2)
) -> Picture:
    """Let ``draw`` fill axes of ``size`` inches.

    Every id is prefixed with ``name`` and a hyphen, so that ids are unique in a page with several pictures: an artist
    with the gid "1501" becomes the element "gains-1501" of the picture "gains". ``caption`` is also
    what a screen reader reads instead of the picture, so it says what is to be seen. Raises MeasureError if matplotlib
    is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an optional extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise missing_extra(error) from None
    style: dict[Any, Any] = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": QUIET,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), LINE),
        "legend.facecolor": "none",
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # Topic names may be in any script; the browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = Figure(figsize=size, layout="constrained")
        draw(canvas.subplots())
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # An XML declaration and a document type are not allowed inside HTML.
    svg = buffer.getvalue().partition("<svg")[2]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = _STYLE.sub(lambda style: _COLOUR.sub(lambda found: _VARIABLES[found[0]], style[0]), svg)
    return Picture(f'<svg role="img" aria-label="{html.escape(caption)}"{svg}', caption)
