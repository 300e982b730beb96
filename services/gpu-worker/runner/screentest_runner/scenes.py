"""A world small enough to know what is in it: coloured shapes that move, told in beats.

It draws what the test judge was trained on and the clips whose order is known before anybody scores them; numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

COLOURS: Final[Mapping[str, tuple[int, int, int]]] = {
    "red": (214, 44, 40),
    "green": (52, 170, 62),
    "blue": (48, 78, 214),
    "yellow": (226, 206, 48),
    "purple": (160, 56, 190),
    "white": (240, 240, 240),
}
BACKGROUNDS: Final[Mapping[str, tuple[int, int, int]]] = {
    "dark": (26, 26, 30),
    "brown": (98, 70, 48),
    "grey": (128, 130, 132),
}
_Axes = NDArray[np.float32]
_SHAPES: Final[Mapping[str, Callable[[_Axes, _Axes], Mask]]] = {
    "circle": lambda u, v: u**2 + v**2 < 1,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.85,
    "triangle": lambda u, v: (v < 0.75) & (np.abs(u) < (v + 1) * 0.55),
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.3) & (np.maximum(np.abs(u), np.abs(v)) < 1),
    "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.3),
}
SHAPES: Final = tuple(_SHAPES)
BEATS: Final = 4

Kind = Literal[
    "all-beats", "reordered", "reversed", "three-of-four", "two-of-four", "frozen", "other-prompt", "noise", "black"
]
KINDS: Final[tuple[Kind, ...]] = Kind.__args__  # type: ignore[attr-defined]  # a Literal's


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape; `str()` of it is what an element asks for."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


ALL_THINGS: Final = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)
# Never drawn nor named in training: whether the test judge puts a known colour and a known shape together.
HELD_OUT: Final = tuple(Thing(colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS))
SEEN: Final = tuple(thing for thing in ALL_THINGS if thing not in HELD_OUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A thing in a picture. x, y: its middle, 0..1 of width and height. radius: 0..1 of the height.

    squeeze: its width by its height; below 1 where a wide picture will be scaled to a square one.
    """

    thing: Thing
    x: float
    y: float
    radius: float
    squeeze: float = 1.0


def drawn(placed: Sequence[Placed], background: str, *, width_px: int, height_px: int, light: float = 1.0) -> Picture:
    """(height, width, 3) uint8: the things, later ones in front, on a background that fades to its lower right.

    Edges are smoothed by drawing at twice the size. light: 1 as it is, less is darker.
    """
    v, u = np.mgrid[0 : 2 * height_px, 0 : 2 * width_px].astype(np.float32) + 0.5
    u, v = u / (2 * width_px), v / (2 * height_px)
    picture = np.array(BACKGROUNDS[background], np.float32) * (1.15 - 0.3 * (u + v) / 2)[..., None]
    for item in placed:
        across = item.radius * item.squeeze * height_px / width_px
        mask = _SHAPES[item.thing.shape]((u - item.x) / across, (v - item.y) / item.radius)
        picture[mask] = COLOURS[item.thing.colour]
    pooled = picture.reshape(height_px, 2, width_px, 2, 3).mean(axis=(1, 3))
    return np.clip(np.rint(pooled * light), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One thing after the other on one background, and a number that decides where they are and how they move."""

    things: tuple[Thing, ...]
    background: str
    seed: int


def drawn_story(seed: int, things: Sequence[Thing] = SEEN) -> Story:
    """Four things no two of which share a colour or a shape, so that each is known by either."""
    random = np.random.default_rng(seed)
    chosen: list[Thing] = []
    while len(chosen) < BEATS:
        thing = things[random.integers(len(things))]
        if all(thing.colour != other.colour and thing.shape != other.shape for other in chosen):
            chosen.append(thing)
        elif random.random() < 0.1:  # the last ones left may not fit together
            chosen.clear()
    return Story(things=tuple(chosen), background=str(random.choice(list(BACKGROUNDS))), seed=seed)


def other_story(story: Story) -> Story:
    """One that shares neither a thing nor the place where it is with `story`."""
    for seed in range(story.seed + 1_000_000, story.seed + 1_001_000):
        other = drawn_story(seed)
        if not set(other.things) & set(story.things):
            return other
    raise ValueError(f"no other story for {story}")


def clip(story: Story, kind: Kind, *, frames: int = 16, width_px: int = 96, height_px: int = 64) -> Picture:
    """(frames, height, width, 3) uint8. `frames` is a multiple of 4: the beats take equal time."""
    size = {"width_px": width_px, "height_px": height_px}
    random = np.random.default_rng([story.seed, KINDS.index(kind)])
    if kind == "black":
        return np.zeros((frames, height_px, width_px, 3), np.uint8)
    if kind == "noise":
        return random.integers(0, 256, (frames, height_px, width_px, 3), np.uint8)
    if kind == "frozen":
        return np.repeat(_beat(story.things[0], story, random, 1, **size), frames, axis=0)
    told = other_story(story) if kind == "other-prompt" else replace(story, things=_told(story.things, kind))
    each = frames // len(told.things)
    parts = [_beat(thing, told, random, each, **size) for thing in told.things]
    return np.concatenate(parts)


def _told(things: tuple[Thing, ...], kind: Kind) -> tuple[Thing, ...]:
    """What is shown in each quarter of the clip. A beat that is missing leaves the one before it on the screen."""
    a, b, c, d = things
    return {
        "all-beats": (a, b, c, d),
        "reordered": (a, c, b, d),
        "reversed": (d, c, b, a),
        "three-of-four": (a, b, b, d),
        "two-of-four": (a, a, a, d),
    }[kind]


def _beat(
    thing: Thing, story: Story, random: np.random.Generator, frames: int, *, width_px: int, height_px: int
) -> Picture:
    """The thing on its way through the picture: two pixels a frame and more, so that it moves for anybody who looks."""
    begin = random.uniform(0.3, 0.7, 2)
    step = random.choice((-1, 1), 2) * random.uniform(0.03, 0.06, 2)
    radius = random.uniform(0.24, 0.3)
    places = np.clip(begin + step * np.arange(frames)[:, None], 0.25, 0.75)
    return np.stack(
        [
            drawn(
                [Placed(thing=thing, x=float(x), y=float(y), radius=radius)],
                story.background,
                width_px=width_px,
                height_px=height_px,
            )
            for x, y in places
        ]
    )
