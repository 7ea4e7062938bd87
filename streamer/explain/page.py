"""The explanation as a page: self-contained, without a script, from the document of :mod:`streamer.explain.report`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamer.evaluation.page import embedded, environment, show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamer.explain.pictures import Frame

WIDTH, HEIGHT = 420, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 26
_LEAST_SPAN = 0.01
"""The smallest height of a curve's axis: a clip that does not change is a flat line, not its rounding errors."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A tick of an axis, or a moment: where it is, and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A curve in the coordinates of its picture, WIDTH x HEIGHT; ``points`` as SVG has them.

    ``moment``: the answer's moment; ``moment_now``: the store's, where that is another one.
    """

    points: str
    dots: list[tuple[float, float]]
    across: list[Mark]
    up: list[Mark]
    moment: Mark | None
    moment_now: Mark | None
    told: str


def plot(result: Mapping[str, Any]) -> Plot | None:
    """Draw a result's curve; None where it has none."""
    curve = result["curve"]
    if curve is None:
        return None
    times: list[int] = curve["times_ms"]
    cosines: list[float] = curve["cosines"]
    begin, end = min(times), max(times)
    low, high = min(cosines), max(cosines)
    if high - low < _LEAST_SPAN:
        low, high = (low + high - _LEAST_SPAN) / 2, (low + high + _LEAST_SPAN) / 2

    def x(time_ms: float) -> float:
        share = (time_ms - begin) / (end - begin) if end > begin else 0.5
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(cosine: float) -> float:
        return round(_TOP + (high - cosine) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    dots = [(x(time), y(cosine)) for time, cosine in zip(times, cosines, strict=True)]
    ticks = [begin] if begin == end else [begin, (begin + end) / 2, end]
    moment = result["moment_ms"]
    now = result["now"]["moment_ms"] if result["now"] else None
    best = times[cosines.index(max(cosines))]

    def marked(time_ms: int | None) -> Mark | None:
        return None if time_ms is None or not begin <= time_ms <= end else Mark(x(time_ms), _seconds(time_ms))

    return Plot(
        " ".join(f"{across},{up}" for across, up in dots),
        dots if len(dots) <= WIDTH // 4 else [],
        [Mark(x(tick), _seconds(tick)) for tick in ticks],
        [Mark(y(level), f"{level:.3f}") for level in (low, high)],
        marked(moment),
        marked(now) if now != moment else None,
        f"Cosine with the query along the clip, {len(times)} frames from {_seconds(begin)} to {_seconds(end)}: between "
        f"{min(cosines):.4f} and {max(cosines):.4f}, highest at {_seconds(best)}",
    )


def _seconds(time_ms: float) -> str:
    return f"{time_ms / 1000:.4g} s"


def render(found: Mapping[str, Any], frames: Mapping[str, Frame]) -> str:
    """Return the page's HTML; the pictures of ``frames`` are in it, not in its JSON."""
    shown = {each["clip_id"]: frames[each["clip_id"]] for each in found["results"] if each["frame"]}
    return (
        environment("streamer.explain")
        .get_template("explain.html.j2")
        .render(
            title=f"Why these results: {found['query']}",
            found=found,
            data=embedded(found),
            show=functools.partial(show, found),
            plots=[plot(each) for each in found["results"]],
            pictures=[shown.get(each["clip_id"]) for each in found["results"]],
            width=WIDTH,
            height=HEIGHT,
        )
    )
