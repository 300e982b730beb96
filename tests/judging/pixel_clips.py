"""Seeded clips that go wrong in known ways, for tier a. Runs in the judge environment; every clip is a real MP4.

Pictures are 1/f textures, as photographs are: flow needs something to hold on to, and noise must differ from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from screentest_runner import encode
from screentest_runner.protocol import Encode

Frames = NDArray[np.uint8]
Image = NDArray[np.float32]
Random = np.random.Generator

WIDTH_PX, HEIGHT_PX, FPS = 256, 144, 24
MARGIN_PX: Final = 64  # what a moving camera may find beyond the frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """A kind of clip. cuts: in it. is_cut_short: the file is, somewhere after its first third."""

    make: Callable[[Random], Frames]
    cuts: int = 0
    is_cut_short: bool = False


def texture(random: Random, height_px: int, width_px: int) -> Image:
    """(h, w, 3) float32 in 0..255, power falling as 1/f squared, of a random colour."""
    y, x = np.meshgrid(np.fft.fftfreq(height_px), np.fft.rfftfreq(width_px), indexing="ij")
    fall = 1.0 / np.maximum(np.hypot(y, x), 1.0 / max(height_px, width_px)) ** random.uniform(1.0, 1.3)
    shape = fall.shape
    plane = np.fft.irfft2((random.normal(size=shape) + 1j * random.normal(size=shape)) * fall, (height_px, width_px))
    plane = (plane - plane.mean()) / plane.std()
    colour = random.uniform(0.85, 1.0, 3)
    return np.clip(
        plane[..., None] * random.uniform(28, 42) * colour + random.uniform(95, 140) * colour, 0, 255
    ).astype(np.float32)


def stage(random: Random) -> Image:
    return texture(random, HEIGHT_PX + 2 * MARGIN_PX, WIDTH_PX + 2 * MARGIN_PX)


def shot(scene: Image, dx: float = 0.0, dy: float = 0.0, scale: float = 1.0, degrees: float = 0.0) -> Image:
    """What a camera sees of the scene: its centre moved by pixels, larger by scale, turned by degrees."""
    height, width = scene.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, scale)
    matrix[:, 2] += (WIDTH_PX - width) / 2 + dx, (HEIGHT_PX - height) / 2 + dy
    return cv2.warpAffine(scene, matrix, (WIDTH_PX, HEIGHT_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def count(random: Random) -> int:
    """Frames of a clip: half a second to more than a second."""
    return int(random.integers(14, 26))


def panned(random: Random, slowest: float = 0.7, fastest: float = 2.5, frames: int | None = None) -> list[Image]:
    """slowest, fastest: pixels per frame."""
    scene, speed = stage(random), random.uniform(slowest, fastest) * random.choice([-1, 1])
    steps = range(frames or count(random))
    middle = len(steps) / 2
    return [shot(scene, dx=speed * (i - middle), dy=0.3 * speed * (i - middle)) for i in steps]


def zoomed(random: Random) -> list[Image]:
    scene, rate = stage(random), random.uniform(0.1, 0.4) * random.choice([-1, 1]) / FPS
    return [shot(scene, scale=1.15 + rate * i) for i in range(count(random))]


def with_object(random: Random, slowest: float = 1.0, fastest: float = 4.0) -> list[Image]:
    """A disc of another texture that crosses a still scene. Speeds in pixels per frame."""
    background = shot(stage(random))
    thing = 255.0 - texture(random, HEIGHT_PX, WIDTH_PX)
    radius, y = random.uniform(12, 24), random.uniform(35, 75)
    frames, speed = count(random), random.uniform(slowest, fastest)
    begin = random.uniform(30, 60)
    return [disc_on(background, thing, begin + speed * i, y, radius) for i in range(frames)]


def disc_on(background: Image, thing: Image, x: float, y: float, radius: float) -> Image:
    rows, columns = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX]
    inside = np.clip(radius - np.hypot(rows - y, columns - x), 0, 1)[..., None].astype(np.float32)
    moved = cv2.warpAffine(
        thing, np.float32([[1, 0, x - WIDTH_PX / 2], [0, 1, 0]]), (WIDTH_PX, HEIGHT_PX), borderMode=cv2.BORDER_WRAP
    )
    return background * (1 - inside) + moved * inside


def good(random: Random) -> list[Image]:
    return (with_object, panned, zoomed)[int(random.integers(3))](random)


def grained(frames: list[Image], random: Random, sigma: float) -> Frames:
    return stacked([frame + random.normal(0, sigma, frame.shape[:2])[..., None] for frame in frames])


def stacked(frames: list[Image]) -> Frames:
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


# ---- the classes


def black(random: Random) -> Frames:
    level, frames = random.uniform(0, 14), count(random)
    return grained([np.full((HEIGHT_PX, WIDTH_PX, 3), level, np.float32)] * frames, random, random.uniform(0, 3))


def flat(random: Random) -> Frames:
    colour = random.uniform(60, 230, 3).astype(np.float32)
    return grained(
        [np.ones((HEIGHT_PX, WIDTH_PX, 3), np.float32) * colour] * count(random), random, random.uniform(0, 2)
    )


def noise(random: Random) -> Frames:
    """Uniform or normal, coloured or grey, moving or standing still."""
    shape = (count(random), HEIGHT_PX, WIDTH_PX, int(random.choice([1, 3])))
    is_still = random.random() < 0.3
    shape = (1, *shape[1:]) if is_still else shape
    field = (
        random.uniform(0, 255, shape) if random.random() < 0.5 else random.normal(128, random.uniform(25, 60), shape)
    )
    field = np.broadcast_to(np.clip(field, 0, 255), (*shape[:3], 3)).astype(np.uint8)
    return np.repeat(field, 16, axis=0) if is_still else np.ascontiguousarray(field)


def frozen(random: Random) -> Frames:
    return stacked([shot(stage(random))] * count(random))


def frozen_in_the_dark(random: Random) -> Frames:
    return stacked([shot(stage(random)) * random.uniform(0.25, 0.4)] * count(random))


def frozen_under_grain(random: Random) -> Frames:
    return grained([shot(stage(random))] * count(random), random, random.uniform(3, 6))


def freeze_tail(random: Random) -> Frames:
    frames = panned(random, frames=26)
    kept = int(random.integers(8, 11))
    return stacked(frames[:kept] + [frames[kept - 1]] * (26 - kept))


def near_static(random: Random) -> Frames:
    return stacked(panned(random, 0.05, 0.08, frames=28))


def slow_motion(random: Random) -> Frames:
    slow = (lambda: panned(random, 0.25, 0.6), lambda: with_object(random, 0.45, 0.8))
    return stacked(slow[int(random.integers(2))]())


def night(random: Random) -> Frames:
    """A quarter to two fifths of the light, mostly with grain; something moves."""
    light = random.uniform(0.24, 0.4)
    return grained([frame * light for frame in good(random)], random, random.choice([0, 1.5, 3]))


def street_at_night(random: Random) -> Frames:
    """Nearly black but for a few lamps that pass."""
    lamps = random.uniform((0, 20), (WIDTH_PX, HEIGHT_PX - 20), (6, 2))
    sky = shot(stage(random)) * 0.08
    speed = random.uniform(1, 3)
    return grained([lamps_on(sky, lamps, speed * i) for i in range(count(random))], random, random.uniform(0.5, 2.5))


def lamps_on(sky: Image, lamps: NDArray[np.float64], dx: float) -> Image:
    frame = sky.copy()
    for x, y in lamps:
        cv2.circle(frame, (round((x + dx) % WIDTH_PX), round(y)), 7, (190, 170, 120), -1, cv2.LINE_AA)
    return frame


def grain(random: Random) -> Frames:
    return grained(good(random), random, random.uniform(4, 9))


def flicker(random: Random) -> Frames:
    swing = random.uniform(20, 40)
    return stacked([frame + swing * (1 if i % 2 else -1) for i, frame in enumerate(good(random))])


def blurred(random: Random) -> Frames:
    sigma = random.uniform(8, 10)
    return stacked([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in panned(random)])


def doubled(random: Random) -> Frames:
    return stacked([frame for frame in panned(random, 1.5, 3.0, frames=14) for _ in range(2)])


def cut(random: Random) -> Frames:
    return stacked(panned(random, frames=14) + [255 - frame for frame in panned(random, frames=14)])


CLASSES: Final[Mapping[str, Class]] = {
    "object": Class(make=lambda random: stacked(with_object(random))),
    "pan": Class(make=lambda random: stacked(panned(random))),
    "zoom": Class(make=lambda random: stacked(zoomed(random))),
    "cut": Class(make=cut, cuts=1),
    "slow motion": Class(make=slow_motion),
    "night": Class(make=night),
    "street at night": Class(make=street_at_night),
    "grain": Class(make=grain),
    "black": Class(make=black),
    "flat": Class(make=flat),
    "noise": Class(make=noise),
    "frozen": Class(make=frozen),
    "frozen in the dark": Class(make=frozen_in_the_dark),
    "frozen under grain": Class(make=frozen_under_grain),
    "freeze tail": Class(make=freeze_tail),
    "near static": Class(make=near_static),
    "flicker": Class(make=flicker),
    "blurred": Class(make=blurred),
    "doubled": Class(make=doubled),
    "cut short": Class(make=lambda random: stacked(good(random)), is_cut_short=True),
}


def write(frames: Frames, path: Path, fps: float = FPS) -> None:
    """An MP4 as every lane's encoder writes it."""
    raw = path.with_suffix(".rgb")
    frames.tofile(raw)
    height, width = frames.shape[1:3]
    encode.encode(
        Encode(
            frames_path=str(raw),
            clip_path=str(path),
            frames=len(frames),
            height_px=height,
            width_px=width,
            fps=fps,
            title="",
            comment={},
            random_weights=False,
        ),
        lambda _: None,
    )
    raw.unlink()


def made(name: str, seed: int, folder: Path) -> Path:
    """One clip of a class; the same seed gives the same clip."""
    random = np.random.default_rng([seed, list(CLASSES).index(name)])
    path = folder / f"{name.replace(' ', '-')}-{seed}.mp4"
    write(CLASSES[name].make(random), path)
    if CLASSES[name].is_cut_short:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * random.uniform(0.3, 0.9))])
    return path
