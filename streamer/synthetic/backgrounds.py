"""The demo's backgrounds, drawn with Pillow and noise; no two scenes get the same one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from streamer.synthetic.objects import RGB, blend

if TYPE_CHECKING:
    from collections.abc import Callable

Rng = np.random.Generator

_WHITE: RGB = (255, 255, 255)


def _gradient(width: int, height: int, top: RGB, bottom: RGB) -> Image.Image:
    share = np.linspace(0, 1, height)[:, None, None]
    column = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
    return Image.fromarray(np.broadcast_to(column, (height, width, 3)).round().astype(np.uint8))


def _mottle(image: Image.Image, rng: Rng, strength: float, cells: tuple[int, int]) -> Image.Image:
    """Vary the brightness in soft patches, ``cells`` of them across and down."""
    coarse = rng.normal(128, strength, (cells[1], cells[0])).clip(0, 255).astype(np.uint8)
    patches = Image.fromarray(coarse).resize(image.size, Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(np.int16) + np.asarray(patches).astype(np.int16)[:, :, None] - 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _vary(colour: RGB, rng: Rng, spread: int = 12) -> RGB:
    red, green, blue = (int(np.clip(c + rng.integers(-spread, spread + 1), 0, 255)) for c in colour)
    return red, green, blue


def _dots(draw: ImageDraw.ImageDraw, rng: Rng, box: tuple[float, float, float, float], count: int, colour: RGB,
          radii: tuple[float, float]) -> None:  # fmt: skip
    for _ in range(count):
        x, y, r = rng.uniform(box[0], box[2]), rng.uniform(box[1], box[3]), rng.uniform(*radii)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=blend(colour, _WHITE, rng.uniform(0, 0.25)))


def _clouds(image: Image.Image, rng: Rng, count: int) -> Image.Image:
    width, height = image.size
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    draw = ImageDraw.Draw(layer)
    for _ in range(count):
        x, y, r = rng.uniform(0, width), rng.uniform(0.05, 0.9) * height, rng.uniform(0.06, 0.12) * height
        for _ in range(6):
            cx, cy, cr = x + rng.uniform(-2, 2) * r, y + rng.uniform(-0.4, 0.4) * r, rng.uniform(0.6, 1.1) * r
            draw.ellipse((cx - cr, cy - cr * 0.7, cx + cr, cy + cr * 0.7), fill=(255, 255, 255, 225))
    image.paste(layer, mask=layer.filter(ImageFilter.GaussianBlur(height / 90)).getchannel("A"))
    return image


def _sky(rng: Rng, width: int, height: int) -> Image.Image:
    image = _gradient(width, height, _vary((84, 156, 232), rng), _vary((190, 224, 248), rng))
    return _clouds(image, rng, int(rng.integers(3, 7)))


def _grass(rng: Rng, width: int, height: int) -> Image.Image:
    image = _gradient(width, height, _vary((142, 196, 88), rng), _vary((70, 140, 48), rng))
    draw = ImageDraw.Draw(image)
    for _ in range(240):
        x, y, length = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.02, 0.07) * height
        tint = blend((112, 172, 64), (40, 104, 36) if rng.random() < 0.6 else (190, 224, 120), rng.uniform(0.2, 0.7))  # noqa: PLR2004
        draw.line((x, y, x + rng.uniform(-0.4, 0.4) * length, y - length), fill=tint, width=1)
    for petal in ((250, 240, 250), (250, 220, 90)):
        _dots(draw, rng, (0, 0, width, height), int(rng.integers(2, 9)), petal, (height / 120, height / 80))
    return image


def _sea(rng: Rng, width: int, height: int) -> Image.Image:
    horizon = int(rng.uniform(0.2, 0.4) * height)
    image = _gradient(width, height, _vary((24, 128, 168), rng), _vary((8, 70, 122), rng))
    image.paste(_gradient(width, horizon, _vary((150, 204, 236), rng), _vary((222, 238, 244), rng)))
    draw = ImageDraw.Draw(image)
    for _ in range(46):
        depth = rng.random() ** 0.8
        x, y, reach = rng.uniform(0, width), horizon + 4 + depth * (height - horizon), (0.02 + 0.06 * depth) * width
        foam = blend((24, 128, 168), _WHITE, rng.uniform(0.25, 0.75))
        draw.arc((x - reach, y - reach / 4, x + reach, y + reach / 4), 190, 350, fill=foam, width=1 + round(depth))
    return image


def _beach(rng: Rng, width: int, height: int) -> Image.Image:
    shore = int(rng.uniform(0.16, 0.32) * height)
    image = _gradient(width, height, _vary((240, 218, 166), rng), _vary((222, 188, 126), rng))
    image = _mottle(image, rng, 6, (24, 18))
    image.paste(_gradient(width, shore, _vary((60, 170, 200), rng), _vary((120, 206, 214), rng)))
    draw = ImageDraw.Draw(image)
    for x in range(0, width, max(1, width // 12)):
        reach = width / 10
        draw.ellipse((x - reach, shore - reach / 5, x + reach, shore + reach / 5), fill=(244, 250, 248))
    _dots(draw, rng, (0, shore + height / 12, width, height), 70, (190, 156, 104), (0.4, height / 130))
    _dots(draw, rng, (0, shore + height / 12, width, height), 5, (236, 200, 190), (height / 90, height / 60))
    return image


def _snow(rng: Rng, width: int, height: int) -> Image.Image:
    image = _gradient(width, height, _vary((150, 172, 198), rng), _vary((214, 224, 236), rng))
    draw = ImageDraw.Draw(image)
    for base, tint in ((0.5, (222, 230, 240)), (0.66, (238, 243, 249))):
        x, reach, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.8, 1.2) * width, base * height
        for _ in range(4):
            tx, tall = rng.uniform(0, width), rng.uniform(0.1, 0.2) * height
            pine = ((tx - tall / 3, y + tall / 4), (tx, y - tall), (tx + tall / 3, y + tall / 4))
            draw.polygon(pine, fill=blend((58, 92, 96), tint, rng.uniform(0.2, 0.5)))
        draw.ellipse((x - reach, y, x + reach, y + 1.6 * height), fill=tint)
    _dots(draw, rng, (0, 0, width, height), 60, (240, 244, 250), (height / 150, height / 70))
    return image


def _night(rng: Rng, width: int, height: int) -> Image.Image:
    image = _gradient(width, height, _vary((14, 18, 52), rng, 6), _vary((44, 52, 108), rng, 8))
    draw = ImageDraw.Draw(image)
    _dots(draw, rng, (0, 0, width, height), 70, (214, 220, 244), (0.3, height / 130))
    x, y, r = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.3) * height, rng.uniform(0.06, 0.1) * height
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(246, 240, 206))
    draw.ellipse((x - r * 0.5, y - r * 1.1, x + r * 1.4, y + r * 0.8), fill=blend((14, 18, 52), (44, 52, 108), 0.3))
    return image


def _brick(rng: Rng, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), _vary((206, 192, 178), rng))
    draw = ImageDraw.Draw(image)
    rows = int(rng.integers(8, 12))
    tall, gap = height / rows, max(1.0, height / 110)
    for row in range(rows + 1):
        for column in range(-1, int(width / (tall * 2.2)) + 2):
            x, y = (column + 0.5 * (row % 2)) * tall * 2.2, row * tall
            brick = (x, y, x + tall * 2.2 - gap, y + tall - gap)
            draw.rectangle(brick, fill=_vary((168, 92, 74), rng, 14))
    return _mottle(image, rng, 7, (32, 24))


def _table(rng: Rng, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    planks = int(rng.integers(4, 7))
    tall = height / planks
    for plank in range(planks + 1):
        tint = _vary((196, 148, 92), rng, 14)
        draw.rectangle((0, plank * tall, width, (plank + 1) * tall), fill=tint)
        for _ in range(9):
            y, x = plank * tall + rng.uniform(0, tall), rng.uniform(-0.3, 0.9) * width
            grain = blend(tint, (104, 66, 34), rng.uniform(0.15, 0.45))
            draw.line((x, y, x + rng.uniform(0.2, 0.7) * width, y + rng.uniform(-1, 1)), fill=grain, width=1)
        draw.line((0, plank * tall, width, plank * tall), fill=(98, 64, 36), width=max(1, height // 90))
    return image


def _sunset(rng: Rng, width: int, height: int) -> Image.Image:
    image = _gradient(width, height, _vary((92, 60, 130), rng), _vary((252, 166, 84), rng))
    x, y, r = rng.uniform(0.15, 0.85) * width, rng.uniform(0.5, 0.7) * height, rng.uniform(0.1, 0.16) * height
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 236, 168))
    for _ in range(5):
        cx, cy, reach = rng.uniform(0, width), rng.uniform(0.1, 0.6) * height, rng.uniform(0.1, 0.3) * width
        draw.ellipse((cx - reach, cy - height / 60, cx + reach, cy + height / 60), fill=(236, 138, 122))
    image = image.filter(ImageFilter.GaussianBlur(height / 120))
    draw = ImageDraw.Draw(image)
    for shift in range(3):
        hill, reach = (shift * 0.5 + rng.uniform(-0.2, 0.2)) * width, rng.uniform(0.4, 0.6) * width
        draw.ellipse((hill - reach, 0.82 * height, hill + reach, 1.5 * height), fill=_vary((70, 44, 78), rng, 6))
    return image


def _forest(rng: Rng, width: int, height: int) -> Image.Image:
    image = _gradient(width, height, _vary((120, 150, 104), rng), _vary((42, 72, 40), rng))
    draw = ImageDraw.Draw(image)
    for layer in range(3):
        bark = blend((62, 50, 36), (120, 150, 104), 0.5 - 0.2 * layer)
        for _ in range(int(rng.integers(4, 7))):
            x, thick = rng.uniform(0, width), (0.01 + 0.009 * layer) * width * rng.uniform(0.8, 1.3)
            draw.rectangle((x - thick, 0, x + thick, (0.7 + 0.12 * layer) * height), fill=bark)
    for _ in range(70):
        x, r = rng.uniform(0, width), rng.uniform(0.03, 0.08) * height
        y = rng.choice([rng.uniform(-0.05, 0.22), rng.uniform(0.82, 1.05)]) * height
        leaf = blend((34, 78, 38), (104, 150, 66), rng.uniform(0, 0.8))
        draw.ellipse((x - r, y - r * 0.7, x + r, y + r * 0.7), fill=leaf)
    return _mottle(image, rng, 7, (16, 12))


_PAINTINGS: dict[str, Callable[[Rng, int, int], Image.Image]] = {
    "sky": _sky, "grass": _grass, "sea": _sea, "beach": _beach, "snow": _snow,
    "night": _night, "brick": _brick, "table": _table, "sunset": _sunset, "forest": _forest,
}  # fmt: skip


def draw_background(name: str, rng: Rng, size: tuple[int, int]) -> Image.Image:
    """Draw a background of ``size`` (width, height) in RGB, drawn at twice the size against jagged edges."""
    large = _PAINTINGS[name](rng, size[0] * 2, size[1] * 2)
    return large.resize(size, Image.Resampling.BOX)
