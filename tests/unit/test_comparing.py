"""Two reports side by side: pairs, ratios, causes, limits, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from screentest_ui import comparing, comparison_page
from screentest_ui.comparing import Budget, Comparison
from screentest_ui.likeness import Likeness, likeness


def row(lane_id: str, job_id: str, **more: Any) -> dict[str, Any]:
    return {
        "lane_id": lane_id,
        "prompt_index": 0,
        "seed": 42,
        "job_id": job_id,
        "model": f"Model {lane_id}",
        "status": "completed",
        "failure_class": None,
        "latency_s": 10.0,
        "gpu_energy_wh": 2.0,
        "score": None,
        "clip": {"file": f"clips/{job_id}.mp4"},
        **more,
    }


def report(sweep_id: str, *rows: dict[str, Any]) -> dict[str, Any]:
    return {"sweep": {"id": sweep_id, "title": "T <script>alert(1)</script>"}, "rows": list(rows)}


def score(middle: float, half: float = 0.5) -> dict[str, float]:
    return {"score10": middle, "low": middle - half, "high": middle + half}


def compared(a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    return comparing.compare(a, b, {}, {})


def test_cells_that_both_have_are_paired_and_the_others_are_named() -> None:
    found = compared(report("a", row("x", "1"), row("y", "2")), report("b", row("x", "3"), row("z", "4")))
    assert [pair.lane_id for pair in found.pairs] == ["x"]
    assert (found.only_a, found.only_b) == (("Model y",), ("Model z",))


def test_ratios_are_medians_over_what_completed_in_both() -> None:
    failed = {"status": "failed", "failure_class": "timeout", "latency_s": 7200.0, "clip": None}
    a = report("a", row("x", "1"), row("y", "2"), row("z", "3", **failed))
    b = report("b", row("x", "4", latency_s=20.0), row("y", "5", latency_s=12.0), row("z", "6"))
    found = compared(a, b)
    assert found.latency_ratio == pytest.approx(1.6)
    assert found.energy_ratio == 1.0
    assert found.survival == (2, 3)
    assert found.pairs[2].outcome == "failed (timeout) -> completed"


@pytest.mark.parametrize(
    ("a", "b", "drop"),
    [
        (score(6.0), score(4.0), 2.0),
        (score(6.0), score(5.5), 0.0),  # overlapping intervals are no difference
        (score(4.0), score(6.0), -2.0),
        (None, score(6.0), None),
    ],
)
def test_scores_are_told_apart_only_by_intervals(a: Any, b: Any, drop: float | None) -> None:
    (pair,) = compared(report("a", row("x", "1", score=a)), report("b", row("x", "2", score=b))).pairs
    assert pair.score_drop == drop


def test_an_unknown_number_is_no_ratio_and_breaks_its_limit() -> None:
    found = compared(report("a", row("x", "1", gpu_energy_wh=None)), report("b", row("x", "2")))
    assert found.energy_ratio is None
    (broken,) = Budget(max_energy_ratio=2.0).broken(found)
    assert "unknown" in broken


def test_limits_break_where_they_are_passed_and_only_there() -> None:
    found = compared(
        report("a", row("x", "1", score=score(8))), report("b", row("x", "2", latency_s=15.0, score=score(5)))
    )
    assert Budget(max_latency_ratio=1.5, max_score_drop=3, min_survival=1).broken(found) == ()
    broken = Budget(max_latency_ratio=1.4, max_score_drop=2.9, min_survival=2).broken(found)
    assert [line.split(":")[0] for line in broken] == ["latency", "score drop", "survival"]


def test_what_differs_comes_from_the_manifests() -> None:
    manifest = {
        "parameters": {"steps": 25, "call": {"guidance_scale": 5.0}},
        "rung": {"index": 0, "name": "resident"},
        "versions": {"torch": "2.11.0"},
        "phases": [1],
    }
    other = {
        "parameters": {"steps": 25, "call": {"guidance_scale": 7.0}},
        "rung": {"index": 1, "name": "lean"},
        "versions": {"torch": "2.11.0", "diffusers": "0.42.1"},
        "phases": [2],  # what was measured explains nothing
    }
    assert comparing.differences(manifest, other) == (
        "parameters.call.guidance_scale: 5.0 -> 7.0",
        "rung.name: resident -> lean",
        "versions.diffusers: none -> 0.42.1",
    )
    assert comparing.differences(manifest, manifest) == ()


def test_page_escapes_what_users_wrote(tmp_path: Path) -> None:
    a, b = report("a", row("x", "1", model="<script>m</script>")), report("b", row("x", "2"))
    page = comparison_page.write(
        compared(a, b), ("latency: too long",), {"a": a, "b": b}, tmp_path / "diff"
    ).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;m" in page
    assert '<video src="../a/clips/1.mp4"' in page
    assert "latency: too long" in page


# ---- pictures


def clip(path: Path, *, noise: int = 0, frames: int = 6, width: int = 96) -> Path:
    draw = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
        for index in range(frames):
            picture = np.zeros((64, width, 3), np.uint8)
            picture[10:40, 10 + 4 * index : 40 + 4 * index] = 200
            picture = np.clip(picture + draw.integers(0, noise + 1, picture.shape), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_equal_pictures_are_bit_exact_whatever_the_file_says(tmp_path: Path) -> None:
    found = likeness(clip(tmp_path / "a.mp4"), clip(tmp_path / "b.mp4"))
    assert (found.exact, found.ssim) == (True, 1.0)
    assert found.text == "bit-exact"


def test_noise_lowers_the_similarity(tmp_path: Path) -> None:
    plain = clip(tmp_path / "a.mp4")
    little, much = (likeness(plain, clip(tmp_path / f"{noise}.mp4", noise=noise)) for noise in (4, 60))
    assert not little.exact
    assert little.ssim is not None and much.ssim is not None and much.ssim < little.ssim < 1.0


@pytest.mark.parametrize(("changes", "why"), [({"frames": 5}, "more frames"), ({"width": 64}, "64x64 pixels")])
def test_other_shapes_are_not_stretched(tmp_path: Path, changes: dict[str, int], why: str) -> None:
    found = likeness(clip(tmp_path / "a.mp4"), clip(tmp_path / "b.mp4", **changes))
    assert found.ssim is None
    assert why in found.text


def test_a_broken_clip_is_a_reason(tmp_path: Path) -> None:
    broken = tmp_path / "b.mp4"
    broken.write_bytes(b"no clip")
    assert "cannot be decoded" in likeness(clip(tmp_path / "a.mp4"), broken).text
    assert Likeness(exact=True, ssim=1.0, worst=1.0).text == "bit-exact"
