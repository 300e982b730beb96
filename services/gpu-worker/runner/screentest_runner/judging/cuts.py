"""Where a clip cuts, by PySceneDetect: ffmpeg's scdet missed the cut and fired on noise and flicker (measured).

Its adaptive detector asks how a frame differs from the four around it. The plain one, at its default of 27, missed
grey and dark cuts (13 to 27) and fired on grain in the dark (31), whose hue is random.
"""

from __future__ import annotations

import cv2
from scenedetect import AdaptiveDetector, FrameTimecode

from screentest_runner.judging.media import Media
from screentest_runner.judging.thresholds import Cuts


def find(media: Media, thresholds: Cuts) -> tuple[int, ...]:
    """Indices into media.frames of the first frame after each cut, rising."""
    interval_s = media.interval_s
    if interval_s is None:
        return ()
    rate = 1.0 / interval_s
    detector = AdaptiveDetector(
        adaptive_threshold=thresholds.ratio,
        min_content_val=thresholds.content,
        min_scene_len=max(1, round(thresholds.min_scene_s * rate)),
    )
    found: list[int] = []
    for index, frame in enumerate(media.frames):
        found += _numbers(detector.process_frame(FrameTimecode(index, rate), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)))
    end = FrameTimecode(len(media.frames) - 1, rate)
    return tuple(sorted({*found, *_numbers(detector.post_process(end))}))


def _numbers(timecodes: list[FrameTimecode]) -> list[int]:
    return [timecode.frame_num for timecode in timecodes]
