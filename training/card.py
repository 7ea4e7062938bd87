"""The small model's model card: its data, training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from streamer.synthetic.scenes import BACKGROUNDS, COLOURS, OBJECTS, Item, held_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from training.evaluation import RerankFigures
    from training.loop import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The parts of the card that depend on the run."""

    seed: int
    recipe: Recipe
    scenes: int
    megabytes: float
    render_seconds: float
    train_seconds: float
    machine: str
    evaluated: int
    recall: Mapping[str, Mapping[str, Mapping[int, float]]]
    """Share of hits by set, direction and k."""
    accuracy: Mapping[str, Mapping[str, tuple[float, int]]]
    """Share of correct choices and number of stills, by set and attribute."""
    clips: int
    queries: int
    reranked: Mapping[int, RerankFigures]
    """Results by the seed of the clips and queries."""


def render_card(run: Run) -> str:
    """Return the card as Markdown."""
    environment = Environment(
        loader=PackageLoader("training"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown of our own words and numbers
    )
    pairs = [f"{colour} {name}" for name in OBJECTS for colour in COLOURS if held_out(Item(name, colour))]
    choices = {
        "object": len(OBJECTS),
        "colour": len(COLOURS),
        "count": 3,
        "size": 2,
        "background": len(BACKGROUNDS),
        "whose colour": 2,
    }
    values = {name: getattr(run, name) for name in Run.__dataclass_fields__}
    return environment.get_template("model-card.md.j2").render(
        **values,
        objects=list(OBJECTS),
        colours=list(COLOURS),
        backgrounds=list(BACKGROUNDS),
        pairs=pairs,
        choices=choices,
    )
