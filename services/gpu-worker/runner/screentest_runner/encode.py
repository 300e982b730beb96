"""`python -m screentest_runner.encode`: writes one MP4 from raw frames and exits. Imports no torch, opens no GPU.

It is started while the runner still denoises, and waits on stdin for its one request, so that importing PyAV costs no
time between two clips.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from fractions import Fraction
from pathlib import Path
from typing import Any

from screentest_runner.protocol import (
    REPLY_FD_VARIABLE,
    Encode,
    Encoded,
    EncodeFailed,
    EncodeProgress,
    EncoderReply,
    ProtocolError,
    parse,
    to_line,
)

# Visually lossless for review and scoring; veryfast takes a third of medium's time for about a tenth more bytes.
X264_OPTIONS = {"crf": "18", "preset": "veryfast"}
PROGRESS_EVERY_S = 0.5
BT709 = 1  # Source: ITU-T H.273, code point for primaries, transfer and matrix alike
LIMITED_RANGE = 1  # Source: FFmpeg AVCOL_RANGE_MPEG


class EncodeError(Exception):
    """A request that cannot become a clip; the text says what is wrong with it."""


def check(request: Encode) -> None:
    """Raises EncodeError on an odd size (yuv420p halves both axes) or a frame file of another length."""
    if request.width_px % 2 or request.height_px % 2:
        raise EncodeError(
            f"{request.width_px}x{request.height_px} is odd: yuv420p needs even sizes, and a clip is never rescaled; "
            "set the lane's size_multiple_px to an even number"
        )
    wanted = request.frames * request.height_px * request.width_px * 3
    found = Path(request.frames_path).stat().st_size
    if found != wanted or not wanted:
        raise EncodeError(
            f"{request.frames_path} holds {found} bytes, but {request.frames} frames of "
            f"{request.width_px}x{request.height_px} are {wanted}"
        )


def comment_text(request: Encode) -> str:
    """The MP4's comment: JSON, after the words `random weights` where they made the clip."""
    text = json.dumps(request.comment, sort_keys=True, ensure_ascii=False)
    return f"random weights {text}" if request.random_weights else text


def encode(request: Encode, report: Any) -> Encoded:
    """Write the clip and return its size and sha256. `report` gets an EncodeProgress now and then.

    The file appears under its name only when it is whole: it is written beside it, synced and renamed.
    """
    began = time.perf_counter()
    check(request)
    clip = Path(request.clip_path)
    part = clip.with_name(clip.name + ".part")
    try:
        _write(request, part, report)
        digest = _sync_and_hash(part)
        part.replace(clip)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return Encoded(
        clip_path=request.clip_path,
        bytes=clip.stat().st_size,
        sha256=digest,
        encode_s=time.perf_counter() - began,
    )


def _write(request: Encode, path: Path, report: Any) -> None:
    import av
    import numpy as np
    from av.video.reformatter import VideoReformatter

    shape = (request.frames, request.height_px, request.width_px, 3)
    pixels = np.memmap(request.frames_path, dtype=np.uint8, mode="r", shape=shape)
    rate = Fraction(request.fps).limit_denominator(1001)
    reported_at = time.perf_counter()
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["title"] = request.title
        container.metadata["comment"] = comment_text(request)
        stream = container.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = request.width_px, request.height_px, "yuv420p"
        _tag_colours(stream.codec_context)
        # One for all frames: a frame's own reformat sets its scaler up anew (25 tiny frames: 15 ms against 4 ms).
        reformatter = VideoReformatter()
        for index in range(request.frames):
            picture = av.VideoFrame.from_ndarray(pixels[index], format="rgb24")
            container.mux(stream.encode(_to_yuv(picture, reformatter)))
            if time.perf_counter() - reported_at >= PROGRESS_EVERY_S:
                reported_at = time.perf_counter()
                report(EncodeProgress(done=index + 1, frames=request.frames))
        container.mux(stream.encode())


def _tag_colours(context: Any) -> None:
    """Untagged, players guess BT.601 or BT.709 by the picture's height and the lanes would differ in tint."""
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.color_range = LIMITED_RANGE


def _to_yuv(picture: Any, reformatter: Any) -> Any:
    yuv = reformatter.reformat(picture, format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
    yuv.pts = None  # the encoder counts frames itself
    return yuv


def _sync_and_hash(path: Path) -> str:
    """Flush the file to disk and return its sha256 in hex."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Exit status: 0 after Encoded or when stdin ended without a request, 1 after EncodeFailed, 2 on a bad line."""
    import av  # noqa: F401  (imported while the runner denoises, not when the frames are there)
    import numpy as np  # noqa: F401

    reply_fd = int(os.environ[REPLY_FD_VARIABLE])

    def send(reply: EncoderReply) -> None:
        os.write(reply_fd, to_line(reply))  # shorter than PIPE_BUF or alone on the pipe

    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    request = parse(line)
    if not isinstance(request, Encode):
        raise ProtocolError(f"{type(request).__name__} is no request to an encoder")
    try:
        send(encode(request, send))
    except Exception as error:  # noqa: BLE001  (PyAV and the file system raise anything; each becomes an EncodeFailed)
        text = "" if isinstance(error, EncodeError) else traceback.format_exc()
        send(EncodeFailed(message=f"{type(error).__name__}: {error}" if text else str(error), traceback=text))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
