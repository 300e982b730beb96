"""Twelve frames of a clip at known times, and files that are no clip."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from screentest_reporter import contact_sheet
from screentest_reporter.contact_sheet import POSTER, SHEET, STRIP, Undecodable
from screentest_reporter.pictures import PictureError, PictureMaker
from tests.made_clips import write_clip


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_clip(path, frames=48, fps=16)
    return path


def request(folder: Path, clip: Path, badge: str = "") -> dict[str, str]:
    return {
        "clip": str(clip),
        "sheet": str(folder / "sheet.jpg"),
        "poster": str(folder / "poster.jpg"),
        "strip": str(folder / "strip.jpg"),
        "title": "Wan · seed 42",
        "badge": badge,
    }


def test_frames_are_the_middles_of_twelve_equal_parts(clip: Path) -> None:
    [shots] = contact_sheet.read_shots(clip, SHEET)
    assert len(shots) == 12
    wanted = contact_sheet.wanted_times(3.0)
    assert wanted[0] == pytest.approx(0.125) and wanted[-1] == pytest.approx(2.875)
    # The frame on screen at that moment began at most one frame earlier.
    assert all(0 <= time - shot.seconds < 1 / 16 + 1e-6 for shot, time in zip(shots, wanted, strict=True))


def bar_position(image: Image.Image) -> float:
    """The middle of the bright bar of the made clip."""
    values = image.convert("L").crop((0, image.height // 2, image.width, image.height // 2 + 1)).tobytes()
    bright = [column for column, value in enumerate(values) if value > 180]
    return sum(bright) / len(bright)


def test_each_frame_shows_its_own_moment(clip: Path) -> None:
    positions = [bar_position(shot.image) for shot in contact_sheet.read_shots(clip, SHEET)[0]]
    assert positions == sorted(positions) and len(set(positions)) == 12


def test_one_decoding_serves_sheet_strip_and_poster(clip: Path) -> None:
    together = contact_sheet.read_shots(clip, SHEET, STRIP, POSTER)
    alone = [contact_sheet.read_shots(clip, series)[0] for series in (SHEET, STRIP, POSTER)]
    assert [len(shots) for shots in together] == [12, 8, 1]
    assert [[shot.seconds for shot in shots] for shots in together] == [[s.seconds for s in shots] for shots in alone]


def test_strip_stands_above_equal_parts_of_the_clip(tmp_path: Path, clip: Path) -> None:
    contact_sheet.make(request(tmp_path, clip))
    with Image.open(tmp_path / "strip.jpg") as strip:
        assert strip.width == 8 * contact_sheet.STRIP_CELL_WIDTH_PX


def test_a_clip_of_one_frame_fills_the_sheet(tmp_path: Path) -> None:
    write_clip(tmp_path / "short.mp4", frames=1)
    assert len(contact_sheet.read_shots(tmp_path / "short.mp4", SHEET)[0]) == 12


def test_small_frames_are_enlarged_without_smoothing() -> None:
    small = Image.new("L", (2, 1))
    small.putpixel((1, 0), 255)
    assert set(contact_sheet.resize(small, 320).tobytes()) == {0, 255}


def has_badge(path: Path, at: tuple[int, int]) -> bool:
    """Whether this pixel has the badge's colour; JPEG moves it a little."""
    with Image.open(path) as image:
        found = image.convert("RGB").getpixel(at)
    return all(abs(value - wanted) < 8 for value, wanted in zip(found, (0xF2, 0xB5, 0x44), strict=True))


def test_badge_is_burnt_into_sheet_and_poster(tmp_path: Path, clip: Path) -> None:
    sheet, poster = (
        (tmp_path / "sheet.jpg", (1200, contact_sheet.TITLE_HEIGHT_PX + 12)),
        (tmp_path / "poster.jpg", (620, 8)),
    )
    contact_sheet.make(request(tmp_path, clip))
    assert not has_badge(*sheet) and not has_badge(*poster)
    contact_sheet.make(request(tmp_path, clip, badge="random weights"))
    assert has_badge(*sheet) and has_badge(*poster)


@pytest.mark.parametrize("content", [b"", b"not a clip", b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 64])
def test_what_is_no_clip_is_undecodable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(Undecodable):
        contact_sheet.read_shots(tmp_path / "bad.mp4", SHEET)


def test_truncated_clip_is_undecodable_or_shows_what_is_there(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 4])
    try:
        assert len(contact_sheet.read_shots(tmp_path / "cut.mp4", SHEET)[0]) == 12
    except Undecodable as error:
        assert str(error)


async def test_a_crashed_child_costs_one_picture(tmp_path: Path, clip: Path) -> None:
    maker = PictureMaker()
    await maker.make(request(tmp_path, clip))
    assert maker._child is not None
    maker._child.kill()
    await maker._child.wait()
    await maker.make(request(tmp_path, clip))  # a new child
    with pytest.raises(PictureError, match="InvalidData"):
        (tmp_path / "bad.mp4").write_bytes(b"bad" * 100)
        await maker.make(request(tmp_path, tmp_path / "bad.mp4"))
    await maker.close()


async def test_a_hanging_decoder_is_ended(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = PictureMaker()
    monkeypatch.setattr("screentest_reporter.pictures.REQUEST_TIMEOUT_S", 0.01)
    monkeypatch.setattr("screentest_reporter.pictures.STOP_TIMEOUT_S", 0.01)
    with pytest.raises(PictureError, match="did not end"):
        await maker.make(request(tmp_path, clip))
    assert maker._child is None
