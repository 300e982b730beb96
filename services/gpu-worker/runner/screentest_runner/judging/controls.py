"""The five controls: clips made of one clip, whose order is known before the judge sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from screentest_runner.judging.media import Media

# As in screentest_reporter.controls.Control.
Name = Literal["wrong-prompt", "black", "frame-shuffled", "static-first-frame", "repeat"]
NAMES: Final[tuple[Name, ...]] = Name.__args__  # type: ignore[attr-defined]  # a Literal's


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Control:
    """asks_other: the judge is asked the questions of another prompt."""

    name: Name
    clip: Media
    asks_other: bool = False


def made_of(clip: Media, windows: int) -> Iterator[Control]:
    """One after the other, so that no more than two clips are held. windows: into which the judge cuts the clip."""
    yield Control(name="wrong-prompt", clip=clip, asks_other=True)
    yield Control(name="black", clip=_shown(clip, np.zeros_like(clip.frames)))
    yield Control(name="frame-shuffled", clip=_shown(clip, clip.frames[_reversed_windows(clip, windows)]))
    yield Control(name="static-first-frame", clip=_shown(clip, np.repeat(clip.frames[:1], len(clip.frames), axis=0)))
    yield Control(name="repeat", clip=clip)


def _shown(clip: Media, frames: np.ndarray) -> Media:
    """The clip with other frames at its times. What only pixels look at is left as it was: no judge sees it."""
    return replace(clip, frames=frames)


def _reversed_windows(clip: Media, windows: int) -> np.ndarray:
    """(T,) which frame to show: the windows in reverse order, the frames of each in theirs. Single frames turned round
    would put every beat into every window.
    """
    length_s = clip.duration_s / windows
    if not length_s:
        return np.arange(len(clip.frames))
    window = np.minimum(clip.times_s // length_s, windows - 1)
    wanted = clip.times_s + (windows - 1 - 2 * window) * length_s
    return np.clip(np.searchsorted(clip.times_s, wanted + 1e-9, side="right") - 1, 0, None)
