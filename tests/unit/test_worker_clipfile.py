"""The probe on real files: what it counts, which flags it gives, and that a broken file is an answer."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from screentest_worker import clipfile

HEIGHT, WIDTH, FRAMES = 96, 160, 24
SEED = 7
RANDOM = np.random.default_rng(SEED)


def texture() -> np.ndarray:
    """A smooth picture with detail, (H, 2 W) in 0..1: smoothed noise, as a photograph's spectrum falls off."""
    plane = RANDOM.random((HEIGHT, 2 * WIDTH))
    for _ in range(12):
        sideways = np.roll(plane, 1, 1) + np.roll(plane, -1, 1)
        plane = (plane + sideways + np.roll(plane, 1, 0) + np.roll(plane, -1, 0)) / 5
    return (plane - plane.min()) / (plane.max() - plane.min())


def moving(brightness: float = 1.0) -> np.ndarray:
    """A pan over the texture."""
    wide = texture() * 255 * brightness
    return np.stack([wide[:, 2 * index : 2 * index + WIDTH] for index in range(FRAMES)])


def lamp() -> np.ndarray:
    """A light that moves through black; it takes one hundredth of the picture."""
    luma = np.full((FRAMES, HEIGHT, WIDTH), 3.0)
    for index in range(FRAMES):
        luma[index, 40:52, 4 * index : 4 * index + 12] = 200.0
    return luma


def still() -> np.ndarray:
    return np.repeat(texture()[None, :, :WIDTH] * 255, FRAMES, axis=0)


def noise() -> np.ndarray:
    """Always the same: a damaged byte of one file is found, of another it changes nothing that a decoder minds."""
    return np.random.default_rng(SEED).random((FRAMES, HEIGHT, WIDTH)) * 255


def write(path: Path, luma: np.ndarray, crf: str = "18") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": crf})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for plane in luma:
            pixels = np.repeat(plane.astype(np.uint8)[..., None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_facts_are_read_from_the_frames(tmp_path: Path) -> None:
    found = clipfile.probe(write(tmp_path / "clip.mp4", moving()), FRAMES)
    assert not found.error
    assert (found.codec, found.pixel_format, found.frames) == ("h264", "yuv420p", FRAMES)
    assert (found.width_px, found.height_px, found.fps) == (WIDTH, HEIGHT, 24.0)
    assert found.duration_s == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("moving", ()),
        ("dim but moving", ()),
        ("black", ("black",)),
        ("a lamp in the dark", ()),
        ("flat", ("flat",)),
        ("noise", ("noise",)),
        ("frozen", ("frozen",)),
        ("frozen tail only", ()),
    ],
)
def test_flag_says_what_is_wrong_with_the_picture(tmp_path: Path, name: str, flags: tuple[str, ...]) -> None:
    pan = moving()
    pictures = {
        "moving": pan,
        "dim but moving": moving(0.35),
        "black": np.full((FRAMES, HEIGHT, WIDTH), 3.0),
        "a lamp in the dark": lamp(),
        "flat": np.full((FRAMES, HEIGHT, WIDTH), 120.0),
        "noise": noise(),
        "frozen": still(),
        "frozen tail only": np.concatenate([pan[:6], np.repeat(pan[5:6], FRAMES - 6, axis=0)]),
    }
    assert clipfile.probe(write(tmp_path / "clip.mp4", pictures[name]), FRAMES).flags == flags


def test_single_frame_is_not_frozen(tmp_path: Path) -> None:
    assert clipfile.probe(write(tmp_path / "clip.mp4", still()[:1]), 1).flags == ()


def test_cut_off_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", moving())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert clipfile.probe(path, FRAMES).error


@pytest.mark.parametrize("damaged_bytes", [4, 1000])
def test_damaged_pictures_are_an_error_though_every_frame_decodes(tmp_path: Path, damaged_bytes: int) -> None:
    path = write(tmp_path / "clip.mp4", noise(), crf="10")
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 20000
    data[begin : begin + damaged_bytes] = bytes(damaged_bytes)
    path.write_bytes(data)
    assert clipfile.probe(path, FRAMES).error


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_foreign_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert clipfile.probe(path, FRAMES).error


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    assert clipfile.probe(tmp_path / "none.mp4", FRAMES).error
