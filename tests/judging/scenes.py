"""The world of `screentest_runner.scenes` as real MP4s: what scene lanes tell, without a lane."""

from __future__ import annotations

from pathlib import Path

from screentest_runner.scenes import (
    BACKGROUNDS,
    BEATS,
    COLOURS,
    HELD_OUT,
    KINDS,
    SEEN,
    SHAPES,
    Kind,
    Picture,
    Placed,
    Story,
    Thing,
    clip,
    drawn,
    drawn_story,
    other_story,
)

__all__ = [
    "BACKGROUNDS",
    "BEATS",
    "COLOURS",
    "HELD_OUT",
    "KINDS",
    "SEEN",
    "SHAPES",
    "Kind",
    "Picture",
    "Placed",
    "Story",
    "Thing",
    "clip",
    "drawn",
    "drawn_story",
    "other_story",
    "write_mp4",
]


def write_mp4(path: Path, pictures: Picture, *, fps: int = 8) -> Path:
    """As the encoder writes clips: H.264, yuv420p, BT.709."""
    import av
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one for all frames: setting it up costs more than using it
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(reformatter.reformat(frame, format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())
    return path
