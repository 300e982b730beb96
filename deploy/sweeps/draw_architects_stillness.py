"""Draws architects-stillness.png, the keyframe of the demo: the obsidian cathedral brain chamber. Same bytes each run.

Run it from anywhere: ``python deploy/sweeps/draw_architects_stillness.py``. Needs numpy and Pillow.

A barrel vault is intersected analytically, ray by ray; folded noise makes its brain-like relief; the wet floor shows
the same vault mirrored; cracks and figures are drawn on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Field = NDArray[np.float64]

# Divisible by 32 both ways: every image-to-video lane takes it without a crop of its own.
WIDTH_PX, HEIGHT_PX = 1216, 704
SEED = 20260508

HALF_WIDTH = 1.0
FLOOR = -0.72
END = 9.0  # where the apse with the dome stands
FOCAL = 1.25
BAY = 1.15  # distance between two ribs

COLD = np.array([0.42, 0.66, 0.86])
EMBER = np.array([0.95, 0.26, 0.16])
OBSIDIAN = np.array([0.020, 0.024, 0.034])

# The centre of the dome and its radius, in units of the image height.
DOME_CENTRE = (0.0, 0.135)
DOME_RADIUS = 0.178


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """Where each ray meets the vault: arc length across it, distance along it, and which part it is."""

    across: Field
    along: Field
    is_floor: NDArray[np.bool_]


def main() -> None:
    draw().save(Path(__file__).with_name("architects-stillness.png"), optimize=True)


def draw() -> Image.Image:
    x, y = _screen()
    hit = _meet(x, y)
    colour = _vault(hit.across, hit.along)
    colour = np.where(hit.is_floor[..., None], _floor(x, y, hit), colour)
    colour = _apse(x, y, colour)
    picture = _to_image(colour)
    _crack(picture)
    _figures(picture)
    return _develop(picture)


def _screen() -> tuple[Field, Field]:
    """(H, W) screen coordinates: y from -0.5 to 0.5 upwards, x in the same unit."""
    columns = (np.arange(WIDTH_PX) - WIDTH_PX / 2 + 0.5) / HEIGHT_PX
    rows = (HEIGHT_PX / 2 - 0.5 - np.arange(HEIGHT_PX)) / HEIGHT_PX
    x, y = np.meshgrid(columns, rows)
    return x, y + 0.035  # the camera looks slightly up, as a child does


def _meet(x: Field, y: Field) -> Hit:
    """Walls below the springing line, a half cylinder above it, a floor."""
    tiny = 1e-9
    wall = HALF_WIDTH / np.maximum(np.abs(x), tiny)
    floor = np.where(y < 0, FLOOR / np.minimum(y, -tiny), np.inf)
    vault = HALF_WIDTH / np.maximum(np.hypot(x, y), tiny)
    reach = np.where(y >= 0, vault, np.minimum(wall, floor))
    angle = np.arctan2(np.maximum(y, 0), x)
    across = np.where(y >= 0, angle, np.where(x > 0, y * reach, np.pi - y * reach))
    return Hit(across=across, along=reach * FOCAL, is_floor=(y < 0) & (floor < wall))


def _vault(across: Field, along: Field) -> NDArray[np.float64]:
    """Black glass folded like a cortex, lit cold from the far end and by embers in its furrows."""
    height = _folds(across, along)
    slope_across, slope_along = _slope(height, across, along)
    towards_light = np.clip(-slope_along * 0.55 + 0.25, 0, 1)
    gloss = towards_light**5 * 1.5 + np.clip(slope_across, 0, 1) ** 6 * 0.7
    depth = np.clip(along / END, 0, 1)
    rib = np.exp(-((((along / BAY) % 1) - 0.5) ** 2) / 0.0035)
    light = (0.10 + 0.90 * depth**1.6) * (gloss * (1 - 0.6 * rib) + 0.05)
    furrow = np.exp(-(height**2) / 0.012) * np.exp(-((along - 2.1) ** 2) / 3.2)
    colour = OBSIDIAN + light[..., None] * COLD + 0.16 * furrow[..., None] * EMBER
    edge = np.exp(-((np.abs(((along / BAY) % 1) - 0.5) - 0.085) ** 2) / 0.00025)
    return colour * (1 - 0.55 * rib[..., None]) + (edge * depth**1.2 * 0.22)[..., None] * COLD


def _folds(across: Field, along: Field) -> Field:
    """-1 to 1: stripes along the level lines of warped noise, which is how gyri look."""
    u, v = across * 2.3, along * 1.35
    warp = _noise(u * 1.1, v * 1.1, 1)
    field = _noise(u + 1.7 * warp, v - 1.3 * warp, 2) + 0.45 * _noise(2.1 * u, 2.1 * v, 3)
    # Far away a fold is narrower than a pixel: flatten it before it becomes noise.
    return np.sin(field * 13.0) * np.clip(1.35 - along / 6.5, 0.12, 1)


def _slope(height: Field, across: Field, along: Field) -> tuple[Field, Field]:
    """Of the relief on the screen; its sign is what catches the light."""
    down, right = np.gradient(height)
    fade = np.clip(3.2 / np.maximum(along, 0.2), 0.15, 2.2)
    return right * 9 * fade * np.sign(np.cos(across)), down * 9 * fade


def _floor(x: Field, y: Field, hit: Hit) -> NDArray[np.float64]:
    """Standing water: the vault upside down, broken by ripples that get finer with the distance."""
    along = np.minimum(hit.along, END * 1.4)
    ripple = _noise(x * along * 3.0, along * 7.0, 4) * 0.020 + _noise(x * along * 11, along * 23, 5) * 0.007
    mirrored = _meet(x + ripple * 0.6, np.abs(y) * 0.92 + ripple)
    image = _vault(mirrored.across, np.minimum(mirrored.along, END))
    shine = 0.30 + 0.55 * np.clip(along / END, 0, 1)
    column = np.exp(-((x / (0.045 + 0.10 * np.abs(y))) ** 2)) * np.clip(along / END, 0, 1) ** 0.7
    broken = np.clip(0.72 + ripple * 22, 0, 1.4)
    return image * shine[..., None] + (column * broken * 0.55)[..., None] * COLD


def _apse(x: Field, y: Field, colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """The glass dome at the end, ringed like an iris; its glow fills the far bays."""
    distance = np.hypot(x - DOME_CENTRE[0], y - DOME_CENTRE[1])
    angle = np.arctan2(y - DOME_CENTRE[1], x - DOME_CENTRE[0])
    inside = distance / DOME_RADIUS
    fibres = _noise(np.cos(angle) * 14, np.sin(angle) * 14, 6) * 0.5 + 0.5
    iris = (0.42 + 0.58 * fibres) * np.clip(inside * 1.15, 0, 1) * np.clip((1.02 - inside) * 9, 0, 1)
    pupil = np.clip((inside - 0.30) * 14, 0, 1)
    leads = np.clip(np.abs(np.sin(angle * 9)) * 14 * inside, 0, 1) * np.clip(np.abs(inside - 0.66) * 40, 0, 1)
    glass = iris * pupil * (0.35 + 0.65 * leads)
    rim = np.exp(-((inside - 1.0) ** 2) / 0.0012)
    glow = np.exp(-((distance / 0.21) ** 2)) * 0.22 + np.exp(-((distance / 0.5) ** 2)) * 0.10
    veil = np.clip((inside - 0.985) * 60, 0, 1)[..., None]
    shown = colour * veil + OBSIDIAN * (1 - veil)
    return shown + (glass * 1.05 + rim * 0.85 + glow)[..., None] * COLD + (glass**3 * 0.25)[..., None]


def _crack(picture: Image.Image) -> None:
    """Fractures that start at one blow on the dome and run on into the stone."""
    random = np.random.Generator(np.random.PCG64(SEED))
    layer = Image.new("L", picture.size, 0)
    pen = ImageDraw.Draw(layer)
    blow = (DOME_CENTRE[0] + 0.055, DOME_CENTRE[1] + 0.060)
    for number in range(13):
        heading = 2 * np.pi * number / 13 + random.normal(0, 0.16)
        length = DOME_RADIUS * random.uniform(0.7, 1.75)
        _branch(pen, random, blow, heading, length, 3)
    for radius in (0.022, 0.047, 0.083):
        start = random.uniform(0, 360)
        box = [*_pixel(blow[0] - radius, blow[1] + radius), *_pixel(blow[0] + radius, blow[1] - radius)]
        pen.arc(box, start, start + random.uniform(90, 210), fill=190, width=1)
    picture.paste(Image.new("RGB", picture.size, (4, 6, 10)), mask=layer.filter(ImageFilter.GaussianBlur(1.6)))
    picture.paste(Image.new("RGB", picture.size, (226, 240, 250)), mask=layer.filter(ImageFilter.GaussianBlur(0.5)))


def _branch(
    pen: ImageDraw.ImageDraw,
    random: np.random.Generator,
    start: tuple[float, float],
    heading: float,
    length: float,
    width: int,
) -> None:
    x, y = start
    steps = max(3, int(length / 0.014))
    for step in range(steps):
        heading += random.normal(0, 0.20)
        after = (x + np.cos(heading) * length / steps, y + np.sin(heading) * length / steps)
        pen.line([_pixel(x, y), _pixel(*after)], fill=int(225 - 150 * step / steps), width=max(1, width))
        x, y = after
        if width > 1 and random.random() < 0.20:
            _branch(pen, random, (x, y), heading + random.choice([-0.8, 0.8]), length * 0.42, width - 2)


def _figures(picture: Image.Image) -> None:
    """The child, with the doll hanging from one hand, before the light; and both in the water."""
    foot = (0.0, -0.205)
    layer = Image.new("L", picture.size, 0)
    _child(ImageDraw.Draw(layer), foot, 0.150, 1)
    picture.paste(Image.new("RGB", picture.size, (3, 4, 6)), mask=layer.filter(ImageFilter.GaussianBlur(0.7)))
    edge = Image.composite(layer, Image.new("L", picture.size, 0), layer).filter(ImageFilter.FIND_EDGES)
    picture.paste(Image.new("RGB", picture.size, (120, 158, 186)), mask=edge.point(lambda value: value // 3))
    mirror = Image.new("L", picture.size, 0)
    _child(ImageDraw.Draw(mirror), (foot[0], foot[1] - 0.004), 0.150, -1)
    soft = mirror.filter(ImageFilter.GaussianBlur(2.6)).point(lambda value: value * 7 // 10)
    picture.paste(Image.new("RGB", picture.size, (3, 4, 6)), mask=soft)


def _child(pen: ImageDraw.ImageDraw, foot: tuple[float, float], tall: float, up: int) -> None:
    """A silhouette of ``tall`` units; ``up`` -1 draws it upside down."""

    def at(x: float, y: float) -> tuple[float, float]:
        return _pixel(foot[0] + x * tall, foot[1] + up * y * tall)

    def blob(x: float, y: float, rx: float, ry: float) -> None:
        (left, top), (right, bottom) = at(x - rx, y + ry), at(x + rx, y - ry)
        pen.ellipse([left, min(top, bottom), right, max(top, bottom)], fill=255)

    blob(0, 0.86, 0.105, 0.125)
    blob(0.0, 0.90, 0.125, 0.115)
    pen.polygon([at(-0.09, 0.72), at(0.09, 0.72), at(0.21, 0.26), at(-0.21, 0.26)], fill=255)
    pen.line([at(-0.07, 0.28), at(-0.075, 0.0)], fill=255, width=7)
    pen.line([at(0.07, 0.28), at(0.075, 0.0)], fill=255, width=7)
    pen.line([at(-0.09, 0.69), at(-0.20, 0.36)], fill=255, width=5)
    pen.line([at(0.09, 0.69), at(0.23, 0.37)], fill=255, width=5)
    blob(0.25, 0.24, 0.042, 0.046)
    pen.polygon([at(0.225, 0.21), at(0.275, 0.21), at(0.315, 0.07), at(0.20, 0.07)], fill=255)
    pen.line([at(0.23, 0.36), at(0.25, 0.26)], fill=255, width=3)
    pen.line([at(0.235, 0.08), at(0.225, 0.01)], fill=255, width=3)
    pen.line([at(0.275, 0.08), at(0.285, 0.01)], fill=255, width=3)


def _develop(picture: Image.Image) -> Image.Image:
    """Bloom and vignette."""
    shown = np.asarray(picture, dtype=np.float64) / 255
    bloom = np.asarray(picture.filter(ImageFilter.GaussianBlur(14)), dtype=np.float64) / 255
    x, y = _screen()
    vignette = 1 - 0.62 * np.clip(np.hypot(x / 0.95, y / 0.62), 0, 1.3)[..., None] ** 2.2
    # Steps of two: nobody sees them, and the file stays below a megabyte.
    halves = (np.clip((shown + bloom * 0.22) * vignette, 0, 1) * 127).round().astype(np.uint8)
    return Image.fromarray(halves * 2)


def _to_image(colour: NDArray[np.float64]) -> Image.Image:
    filmic = 1 - np.exp(-1.45 * np.clip(colour, 0, None))
    return Image.fromarray((np.clip(filmic, 0, 1) ** (1 / 1.45) * 255).astype(np.uint8))


def _pixel(x: float, y: float) -> tuple[float, float]:
    """Screen coordinates, with the camera's tilt, to pixels."""
    return (x * HEIGHT_PX + WIDTH_PX / 2, HEIGHT_PX / 2 - (y - 0.035) * HEIGHT_PX)


def _noise(u: Field, v: Field, salt: int) -> Field:
    """Smooth value noise, -1 to 1, two octaves."""
    return (_lattice(u, v, salt) + 0.5 * _lattice(2.03 * u + 5.2, 2.03 * v + 1.3, salt + 40)) / 1.5


def _lattice(u: Field, v: Field, salt: int) -> Field:
    table = np.random.Generator(np.random.PCG64(SEED + salt)).uniform(-1, 1, (64, 64))
    left, below = np.floor(u), np.floor(v)
    s, t = _ease(u - left), _ease(v - below)
    i, j = left.astype(np.int64) % 64, below.astype(np.int64) % 64
    near = table[j, i] * (1 - s) + table[j, (i + 1) % 64] * s
    far = table[(j + 1) % 64, i] * (1 - s) + table[(j + 1) % 64, (i + 1) % 64] * s
    return near * (1 - t) + far * t


def _ease(value: Field) -> Field:
    return value * value * value * (value * (value * 6 - 15) + 10)


if __name__ == "__main__":
    main()
