"""A clip for a blind page says nothing of its model, and stays the clip that it was."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from screentest_ui.panel_blind import nameless
from tests.made_clips import write_clip

MODEL = "Wan 2.1 T2V 1.3B, seed 42"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_clip(path, 6, title=MODEL)
    return path.read_bytes()


def test_a_clip_loses_the_name_of_its_model_and_no_frame(clip: bytes, tmp_path: Path) -> None:
    assert MODEL.encode() in clip
    blind = nameless(clip)
    assert MODEL.encode() not in blind
    assert len(blind) == len(clip)
    assert _pictures(blind, tmp_path) == _pictures(clip, tmp_path)


def test_what_is_no_clip_or_ends_early_stays_as_it_is(clip: bytes) -> None:
    for content in (b"", b"no clip at all", bytes(64), clip[:40]):
        assert nameless(content) == content


def _pictures(content: bytes, folder: Path) -> list[bytes]:
    path = folder / "read.mp4"
    path.write_bytes(content)
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]
