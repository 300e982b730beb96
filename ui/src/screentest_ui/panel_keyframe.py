"""The keyframe on the page: what each image-to-video lane will see of it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageOps

from screentest.records import Keyframe, LaneVerdict, Task
from screentest_ui.panel_text import listed

PREVIEW_PX = 320


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One size that lanes cut the keyframe to. ``kept``: the share of the picture that they see, 0..1."""

    width_px: int
    height_px: int
    lane_titles: tuple[str, ...]
    kept: float

    @property
    def words(self) -> str:
        share = "the whole picture" if self.kept > 0.995 else f"{self.kept:.0%} of the picture"
        return f"{listed(self.lane_titles)}: {self.width_px}x{self.height_px}, {share}"


def crops(keyframe: Keyframe, verdicts: Iterable[LaneVerdict]) -> tuple[Crop, ...]:
    """The sizes that the planned image-to-video lanes ask for, each once, in the order of the lanes."""
    titles: dict[tuple[int, int], list[str]] = {}
    for verdict in verdicts:
        if verdict.plan is not None and verdict.plan.task is Task.I2V:
            titles.setdefault((verdict.plan.width_px, verdict.plan.height_px), []).append(verdict.lane_title)
    return tuple(
        Crop(width_px=width_px, height_px=height_px, lane_titles=tuple(found), kept=kept(keyframe, width_px, height_px))
        for (width_px, height_px), found in titles.items()
    )


def kept(keyframe: Keyframe, width_px: int, height_px: int) -> float:
    """Share of the keyframe that is left when it is scaled to cover a size and cut at its centre, 0..1."""
    theirs, ours = width_px / height_px, keyframe.width_px / keyframe.height_px
    return min(theirs, ours) / max(theirs, ours)


def preview(content: bytes, crop: Crop) -> bytes:
    """JPEG of the crop, at most PREVIEW_PX wide, cut as the runner cuts it: ``ImageOps.fit``."""
    scale = min(PREVIEW_PX / crop.width_px, 1.0)
    size = (max(round(crop.width_px * scale), 1), max(round(crop.height_px * scale), 1))
    packed = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS).save(packed, "JPEG", quality=85)
    return packed.getvalue()
