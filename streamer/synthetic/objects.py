"""The demo's objects, drawn with Pillow in one main colour each, with shades of it and a few fixed tints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RGB = tuple[int, int, int]
Point = tuple[float, float]

INK: RGB = (48, 44, 54)
GLASS: RGB = (196, 228, 242)
WOOD: RGB = (116, 76, 44)
CREAM: RGB = (246, 234, 208)
LEAF: RGB = (70, 142, 62)
FLAME: RGB = (252, 176, 44)

_SUPERSAMPLING = 3
_DARK_LUMA = 70


def blend(colour: RGB, other: RGB, share: float) -> RGB:
    """Mix ``share`` of ``other`` into ``colour``."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


class Sketch:
    """A transparent square with coordinates from -1 to 1, y downwards, and the tints of one main colour."""

    def __init__(self, pixels: int, colour: RGB) -> None:
        self.image = Image.new("RGBA", (pixels, pixels))
        self._draw = ImageDraw.Draw(self.image)
        self._half = pixels / 2
        self.main = colour
        self.shade = blend(colour, (0, 0, 0), 0.28)
        self.light = blend(colour, (255, 255, 255), 0.42)

    def _at(self, point: Point) -> Point:
        return (point[0] + 1) * self._half, (point[1] + 1) * self._half

    def polygon(self, points: Sequence[Point], fill: RGB) -> None:
        """Fill a polygon."""
        self._draw.polygon([self._at(point) for point in points], fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB) -> None:
        """Fill an ellipse with centre (x, y)."""
        self._draw.ellipse((*self._at((x - rx, y - ry)), *self._at((x + rx, y + ry))), fill=fill)

    def ring(self, x: float, y: float, radius: float, width: float, fill: RGB) -> None:
        """Draw a circle's rim, ``width`` wide, inwards from ``radius``."""
        box = (*self._at((x - radius, y - radius)), *self._at((x + radius, y + radius)))
        self._draw.ellipse(box, outline=fill, width=round(width * self._half))

    def sector(self, x: float, y: float, rx: float, ry: float, degrees: tuple[float, float], fill: RGB) -> None:
        """Fill a part of an ellipse, clockwise from 3 o'clock in degrees."""
        box = (*self._at((x - rx, y - ry)), *self._at((x + rx, y + ry)))
        self._draw.pieslice(box, *degrees, fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, radius: float = 0.0) -> None:
        """Fill a rectangle, its corners rounded by ``radius``."""
        corners = (*self._at((x0, y0)), *self._at((x1, y1)))
        self._draw.rounded_rectangle(corners, radius * self._half, fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: RGB) -> None:
        """Draw a line through the points."""
        pixels = [self._at(point) for point in points]
        self._draw.line(pixels, fill=fill, width=round(width * self._half), joint="curve")

    def arc(self, x: float, y: float, radius: float, degrees: tuple[float, float], width: float, fill: RGB) -> None:
        """Draw a part of a circle's rim."""
        box = (*self._at((x - radius, y - radius)), *self._at((x + radius, y + radius)))
        self._draw.arc(box, *degrees, fill=fill, width=round(width * self._half))


def _around(count: int, radius: float, start: float = -90.0) -> list[Point]:
    angles = [math.radians(start + 360 * i / count) for i in range(count)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _ball(s: Sketch) -> None:
    s.ellipse(0, 0, 0.84, 0.84, s.main)
    for start in (10, 130, 250):
        s.sector(0, 0, 0.84, 0.84, (start, start + 60), s.light)
    s.ellipse(0, 0, 0.16, 0.16, s.shade)
    s.arc(0, 0, 0.84, (20, 160), 0.1, s.shade)


def _star(s: Sketch) -> None:
    outer, inner = _around(5, 0.92), _around(5, 0.4, -54)
    s.polygon([point for pair in zip(outer, inner, strict=True) for point in pair], s.main)
    for tip, notch in zip(outer, inner, strict=True):
        s.polygon([(0, 0), tip, notch], s.shade)


def _heart(s: Sketch) -> None:
    turns = [2 * math.pi * i / 80 for i in range(80)]
    curve = [
        (
            0.052 * 16 * math.sin(t) ** 3,
            -0.056 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) - 0.08,
        )
        for t in turns
    ]
    s.polygon(curve, s.main)
    s.ellipse(-0.4, -0.42, 0.2, 0.15, s.light)


def _wheels(s: Sketch, xs: Sequence[float], y: float, radius: float) -> None:
    for x in xs:
        s.ellipse(x, y, radius, radius, INK)
        s.ellipse(x, y, radius * 0.45, radius * 0.45, (190, 190, 196))


def _car(s: Sketch) -> None:
    s.polygon([(-0.5, -0.12), (-0.3, -0.52), (0.28, -0.52), (0.56, -0.12)], s.main)
    s.polygon([(-0.38, -0.14), (-0.24, -0.42), (-0.03, -0.42), (-0.03, -0.14)], GLASS)
    s.polygon([(0.05, -0.14), (0.05, -0.42), (0.22, -0.42), (0.42, -0.14)], GLASS)
    s.box(-0.92, -0.14, 0.92, 0.34, s.main, 0.16)
    s.box(-0.9, 0.14, 0.9, 0.34, s.shade, 0.1)
    s.ellipse(0.82, 0.02, 0.08, 0.08, CREAM)
    _wheels(s, (-0.5, 0.5), 0.34, 0.24)


def _bus(s: Sketch) -> None:
    s.box(-0.92, -0.64, 0.92, 0.44, s.main, 0.12)
    for x in (-0.8, -0.38, 0.04, 0.46):
        s.box(x, -0.48, x + 0.34, -0.1, GLASS, 0.05)
    s.box(-0.92, 0.08, 0.92, 0.22, s.shade)
    s.ellipse(0.82, 0.32, 0.07, 0.07, CREAM)
    _wheels(s, (-0.5, 0.5), 0.46, 0.22)


def _bicycle(s: Sketch) -> None:
    for x in (-0.54, 0.54):
        s.ring(x, 0.28, 0.4, 0.09, INK)
        s.ring(x, 0.28, 0.3, 0.05, s.light)
    s.line([(-0.54, 0.28), (-0.2, -0.3), (0.36, -0.3), (0.0, 0.28), (-0.54, 0.28)], 0.13, s.main)
    s.line([(-0.26, -0.42), (0.0, 0.28)], 0.13, s.main)
    s.line([(0.54, 0.28), (0.3, -0.52)], 0.13, s.main)
    s.line([(0.16, -0.56), (0.5, -0.56)], 0.1, INK)
    s.box(-0.46, -0.54, -0.12, -0.4, INK, 0.06)


def _boat(s: Sketch) -> None:
    s.line([(0, -0.88), (0, 0.3)], 0.07, WOOD)
    s.polygon([(0.06, -0.84), (0.06, 0.14), (0.72, 0.14)], s.light)
    s.polygon([(-0.06, -0.66), (-0.06, 0.14), (-0.56, 0.14)], s.main)
    s.polygon([(-0.9, 0.26), (0.9, 0.26), (0.6, 0.74), (-0.6, 0.74)], s.main)
    s.polygon([(-0.9, 0.26), (0.9, 0.26), (0.84, 0.38), (-0.84, 0.38)], s.shade)


def _airplane(s: Sketch) -> None:
    s.polygon([(-0.08, -0.1), (0.3, -0.1), (-0.2, -0.86), (-0.42, -0.86)], s.shade)
    s.polygon([(-0.9, -0.5), (-0.68, -0.5), (-0.42, -0.02), (-0.82, 0.02)], s.shade)
    s.ellipse(0.02, 0.02, 0.9, 0.2, s.main)
    s.polygon([(-0.1, 0.08), (0.3, 0.08), (-0.24, 0.84), (-0.46, 0.84)], s.light)
    for x in (-0.4, -0.18, 0.04, 0.26, 0.48):
        s.ellipse(x, -0.03, 0.06, 0.06, GLASS)


def _rocket(s: Sketch) -> None:
    s.polygon([(-0.2, 0.5), (0.2, 0.5), (0, 0.94)], FLAME)
    s.polygon([(-0.26, 0.08), (-0.62, 0.6), (-0.2, 0.46)], s.shade)
    s.polygon([(0.26, 0.08), (0.62, 0.6), (0.2, 0.46)], s.shade)
    s.ellipse(0, -0.16, 0.32, 0.76, s.main)
    s.box(-0.22, 0.4, 0.22, 0.56, s.shade, 0.04)
    s.ellipse(0, -0.3, 0.17, 0.17, INK)
    s.ellipse(0, -0.3, 0.12, 0.12, GLASS)


def _balloon(s: Sketch) -> None:
    s.line([(0, 0.42), (0.08, 0.62), (-0.06, 0.78), (0.02, 0.94)], 0.05, INK)
    s.ellipse(0, -0.28, 0.54, 0.64, s.main)
    s.polygon([(0, 0.32), (-0.1, 0.48), (0.1, 0.48)], s.shade)
    s.ellipse(-0.2, -0.54, 0.12, 0.2, s.light)


def _house(s: Sketch) -> None:
    s.box(0.36, -0.78, 0.56, -0.3, s.shade)
    s.box(-0.66, -0.14, 0.66, 0.78, s.main)
    s.polygon([(-0.9, -0.1), (0, -0.86), (0.9, -0.1)], s.shade)
    s.box(-0.14, 0.26, 0.16, 0.78, WOOD)
    for x in (-0.52, 0.28):
        s.box(x, 0.06, x + 0.26, 0.34, GLASS)


def _tree(s: Sketch) -> None:
    s.polygon([(-0.12, 0.1), (0.12, 0.1), (0.18, 0.92), (-0.18, 0.92)], WOOD)
    for x, y, r in ((-0.36, 0.02, 0.4), (0.36, 0.02, 0.4), (0, -0.42, 0.46)):
        s.ellipse(x, y, r, r, s.main)
    for x, y in ((-0.4, 0.1), (0.3, 0.16), (0.12, -0.3), (-0.16, -0.52)):
        s.ellipse(x, y, 0.13, 0.1, s.shade)


def _flower(s: Sketch) -> None:
    s.line([(0, 0), (0.03, 0.94)], 0.08, LEAF)
    s.ellipse(0.22, 0.66, 0.2, 0.09, LEAF)
    for x, y in _around(6, 0.36):
        s.ellipse(x, y - 0.26, 0.24, 0.24, s.main)
    s.ellipse(0, -0.26, 0.3, 0.3, s.shade)
    s.ellipse(0, -0.26, 0.2, 0.2, CREAM)


def _mushroom(s: Sketch) -> None:
    s.box(-0.24, -0.1, 0.24, 0.82, CREAM, 0.2)
    s.sector(0, 0.04, 0.86, 0.84, (180, 360), s.main)
    s.box(-0.86, 0.0, 0.86, 0.1, s.shade, 0.05)
    for x, y, r in ((-0.46, -0.26, 0.13), (0.02, -0.52, 0.16), (0.46, -0.22, 0.12)):
        s.ellipse(x, y, r, r, CREAM)


def _fish(s: Sketch) -> None:
    s.polygon([(-0.4, 0), (-0.92, -0.42), (-0.78, 0), (-0.92, 0.42)], s.shade)
    s.polygon([(-0.16, -0.3), (0.12, -0.66), (0.32, -0.3)], s.shade)
    s.ellipse(0.14, 0, 0.7, 0.44, s.main)
    s.sector(-0.02, 0.04, 0.28, 0.2, (60, 230), s.light)
    s.ellipse(0.52, -0.1, 0.12, 0.12, (255, 255, 255))
    s.ellipse(0.55, -0.1, 0.06, 0.06, INK)


def _butterfly(s: Sketch) -> None:
    for side in (-1, 1):
        s.ellipse(side * 0.48, -0.34, 0.42, 0.44, s.main)
        s.ellipse(side * 0.4, 0.4, 0.32, 0.36, s.shade)
        s.ellipse(side * 0.52, -0.36, 0.17, 0.19, s.light)
        s.line([(0, -0.5), (side * 0.2, -0.88)], 0.05, INK)
    s.ellipse(0, 0.04, 0.1, 0.62, INK)


def _umbrella(s: Sketch) -> None:
    s.line([(0, -0.2), (0, 0.72)], 0.08, WOOD)
    s.arc(-0.15, 0.72, 0.19, (0, 180), 0.08, WOOD)
    s.sector(0, 0.1, 0.9, 0.92, (180, 360), s.main)
    s.sector(0, 0.1, 0.34, 0.92, (180, 360), s.light)
    for x in (-0.6, 0, 0.6):
        s.sector(x, 0.1, 0.3, 0.14, (0, 180), s.shade)
    s.line([(0, -0.92), (0, -0.8)], 0.07, WOOD)


def _mug(s: Sketch) -> None:
    s.ring(0.56, 0.06, 0.34, 0.13, s.shade)
    s.box(-0.72, -0.52, 0.5, 0.72, s.main, 0.16)
    s.ellipse(-0.11, -0.5, 0.61, 0.17, s.shade)
    s.ellipse(-0.11, -0.48, 0.5, 0.11, WOOD)
    s.box(-0.6, -0.2, -0.46, 0.5, s.light, 0.06)


def _crown(s: Sketch) -> None:
    peaks = [(-0.86, -0.5), (-0.44, 0.06), (0, -0.72), (0.44, 0.06), (0.86, -0.5), (0.7, 0.62), (-0.7, 0.62)]
    s.polygon(peaks, s.main)
    s.box(-0.72, 0.38, 0.72, 0.64, s.shade, 0.04)
    for x, y in ((-0.86, -0.54), (0, -0.76), (0.86, -0.54)):
        s.ellipse(x, y, 0.12, 0.12, s.light)
    for x in (-0.4, 0, 0.4):
        s.ellipse(x, 0.51, 0.08, 0.08, CREAM)


def _kite(s: Sketch) -> None:
    s.line([(0, 0.4), (-0.14, 0.6), (0.1, 0.76), (-0.04, 0.94)], 0.06, INK)
    top, right, bottom, left, middle = (0, -0.92), (0.6, -0.3), (0, 0.5), (-0.6, -0.3), (0, -0.3)
    s.polygon([top, right, middle], s.main)
    s.polygon([right, bottom, middle], s.shade)
    s.polygon([bottom, left, middle], s.main)
    s.polygon([left, top, middle], s.light)
    for x, y in ((-0.14, 0.6), (0.1, 0.76)):
        s.ellipse(x, y, 0.1, 0.06, s.main)


_DRAWINGS: dict[str, Callable[[Sketch], None]] = {
    "ball": _ball, "star": _star, "heart": _heart, "car": _car, "bus": _bus, "bicycle": _bicycle,
    "boat": _boat, "airplane": _airplane, "rocket": _rocket, "balloon": _balloon, "house": _house,
    "tree": _tree, "flower": _flower, "mushroom": _mushroom, "fish": _fish, "butterfly": _butterfly,
    "umbrella": _umbrella, "mug": _mug, "crown": _crown, "kite": _kite,
}  # fmt: skip


def draw_object(name: str, colour: RGB, pixels: int, *, mirrored: bool = False) -> Image.Image:
    """Draw an object as an RGBA square of ``pixels``, anti-aliased, with an outline and a soft shadow."""
    sketch = Sketch(pixels * _SUPERSAMPLING, colour)
    _DRAWINGS[name](sketch)
    drawing = sketch.image.resize((pixels, pixels), Image.Resampling.LANCZOS)
    if mirrored:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    margin = max(2, pixels // 12)
    side = pixels + 2 * margin
    framed = Image.new("RGBA", (side, side))
    framed.paste(drawing, (margin, margin))
    alpha = framed.getchannel("A")
    # Outlined in ink, a black object would vanish at night; it gets a light rim instead.
    is_dark = sum(colour) / 3 < _DARK_LUMA
    rim = Image.new("RGBA", (side, side), (214, 214, 222) if is_dark else INK)
    rim.putalpha(alpha.filter(ImageFilter.MaxFilter(3)))
    shadow = Image.new("RGBA", (side, side), (0, 0, 0))
    soft = ImageChops.offset(alpha, margin // 3, margin // 2).filter(ImageFilter.GaussianBlur(margin / 3))
    shadow.putalpha(soft.point([level * 2 // 5 for level in range(256)]))
    return Image.alpha_composite(Image.alpha_composite(shadow, rim), framed)
