"""What the demo's clips show: scenes of drawn objects, their captions, and which request a scene satisfies.

A scene is a set of attributes. A description is a scene with parts left open, worded by one of several
templates; captions to train on and queries to judge are both made so. Relevance is computed from the
attributes (:func:`satisfies`), never from the words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

OBJECTS: dict[str, str] = {
    "ball": "balls", "star": "stars", "heart": "hearts", "car": "cars", "bus": "buses",
    "bicycle": "bicycles", "boat": "boats", "airplane": "airplanes", "rocket": "rockets",
    "balloon": "balloons", "house": "houses", "tree": "trees", "flower": "flowers",
    "mushroom": "mushrooms", "fish": "fish", "butterfly": "butterflies", "umbrella": "umbrellas",
    "mug": "mugs", "crown": "crowns", "kite": "kites",
}  # fmt: skip
"""Every object with its plural."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44), "orange": (243, 132, 24), "yellow": (248, 212, 40), "green": (52, 160, 70),
    "blue": (42, 98, 214), "purple": (132, 62, 176), "pink": (246, 138, 184), "brown": (128, 80, 46),
    "white": (244, 244, 240), "black": (38, 38, 44),
}  # fmt: skip
"""Every colour with its mean RGB; each scene varies it a little."""

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "sky": ("in the sky", "against a blue sky", "up in the clouds"),
    "grass": ("on grass", "on the grass", "in a green meadow"),
    "sea": ("at sea", "above the sea", "over the waves"),
    "beach": ("on the beach", "on a sandy beach", "on the sand"),
    "snow": ("in the snow", "on a snowy hill", "in winter"),
    "night": ("at night", "under the stars", "in the night sky"),
    "brick": ("in front of a brick wall", "against a brick wall", "by a brick wall"),
    "table": ("on a wooden table", "on a wooden floor", "on wood"),
    "sunset": ("at sunset", "in the evening sun", "in front of a sunset"),
    "forest": ("in a forest", "in the woods", "deep in the forest"),
}
"""Every background with the phrases that name it."""

Size = Literal["small", "large"]

_SIZE_WORDS: dict[Size, tuple[str, ...]] = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_COUNT_WORDS = {2: "two", 3: "three"}
_FRAMES = ("{}", "{}", "{}", "a picture of {}", "there is {}", "we see {}")


@dataclass(frozen=True, slots=True)
class Item:
    """One kind of object in a scene; in a description None leaves the attribute open.

    ``count`` is exact: one car is not two cars. ``size`` None in a scene means of middling size.
    """

    object: str
    colour: str | None
    count: int = 1
    size: Size | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two items before a background; in a description None leaves the background open."""

    items: tuple[Item, ...]
    background: str | None


def held_out(item: Item) -> bool:
    """Tell whether an object never occurs in this colour in training: 28 or 29 of the 200 pairs."""
    return (3 * list(OBJECTS).index(item.object) + list(COLOURS).index(item.colour or "")) % 7 == 0


def has_held_out(scene: Scene) -> bool:
    """Tell whether any item of a scene is a held-out pair."""
    return any(held_out(item) for item in scene.items)


def draw_scene(rng: np.random.Generator, *, two_items: float = 0.3) -> Scene:
    """Draw a scene uniformly; with probability ``two_items`` it holds two different objects."""
    objects = rng.permutation(list(OBJECTS))
    colours = rng.choice(list(COLOURS), 2)
    background = str(rng.choice(list(BACKGROUNDS)))
    if rng.random() < two_items:
        pair = tuple(Item(str(objects[i]), str(colours[i])) for i in range(2))
        return Scene(pair, background)
    count = int(rng.choice([1, 1, 1, 2, 3]))
    size: Size | None = None
    if count == 1:
        size = (None, None, "small", "large")[rng.integers(4)]
    return Scene((Item(str(objects[0]), str(colours[0]), count, size),), background)


def loosen(scene: Scene, rng: np.random.Generator) -> Scene:
    """Leave some of a scene's attributes open, so that the scene satisfies what remains.

    Object and count always stay; at least a colour or the background does.
    """
    items = list(scene.items)
    if len(items) > 1 and rng.random() < 0.2:  # noqa: PLR2004 - a share of descriptions, as below
        items = [items[rng.integers(len(items))]]
    items = [
        replace(
            item,
            colour=item.colour if rng.random() < 0.9 else None,  # noqa: PLR2004
            size=item.size if rng.random() < 0.8 else None,  # noqa: PLR2004
        )
        for item in items
    ]
    coloured = any(item.colour for item in items)
    keeps_background = rng.random() < 0.75 or not coloured  # noqa: PLR2004
    return Scene(tuple(items), scene.background if keeps_background else None)


def noun_phrase(item: Item, rng: np.random.Generator) -> str:
    """Word an item or a description of one: "a small red car", "two cars"."""
    noun = item.object if item.count == 1 else OBJECTS[item.object]
    words = [_COUNT_WORDS[item.count]] if item.count in _COUNT_WORDS else []
    if item.size:
        words.append(str(rng.choice(_SIZE_WORDS[item.size])))
    words += [item.colour, noun] if item.colour else [noun]
    if item.count == 1:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    return " ".join(words)


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Word a scene or a description in plain English."""
    phrases = [noun_phrase(item, rng) for item in scene.items]
    rng.shuffle(phrases)
    what = str(rng.choice([" and ", " next to ", " with "])).join(phrases)
    if scene.background is None:
        return str(rng.choice(_FRAMES)).format(what)
    where = str(rng.choice(BACKGROUNDS[scene.background]))
    if rng.random() < 0.15:  # noqa: PLR2004 - a share of captions
        return f"{where}, {what}"
    return str(rng.choice(_FRAMES)).format(f"{what} {where}")


def _item_satisfies(item: Item, wanted: Item) -> bool:
    return (
        item.object == wanted.object
        and item.count == wanted.count
        and wanted.colour in (None, item.colour)
        and wanted.size in (None, item.size)
    )


def satisfies(scene: Scene, wanted: Scene) -> bool:
    """Tell whether a scene shows all that a description asks for; it may show more."""
    if wanted.background not in (None, scene.background):
        return False
    return any(
        all(_item_satisfies(item, want) for item, want in zip(chosen, wanted.items, strict=True))
        for chosen in permutations(scene.items, len(wanted.items))
    )
