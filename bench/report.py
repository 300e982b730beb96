"""The report alone: how long a revision of N jobs takes to build, how that grows, and what one of ten lanes weighs.

Jobs are made in memory, every tenth fails, every clip is scored, and one GPU recorded a sample a second all along.
Built is what the reporter builds: rows, sentences, ledger, page, Markdown and JSON. Pictures are weighed at their
worst, which is noise.
"""

from __future__ import annotations

import io
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import recording
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from screentest.records import FailureClass, SweepRecord, Weights  # noqa: E402
from screentest_reporter import case_study, contact_sheet, document, page  # noqa: E402
from screentest_reporter.case_study import Material  # noqa: E402
from screentest_reporter.contact_sheet import POSTER, SHEET, STRIP, Series, Shot  # noqa: E402
from screentest_reporter.model_table import Pictures  # noqa: E402
from screentest_reporter.scores import Scores  # noqa: E402
from screentest_reporter.sweeps import SweepState  # noqa: E402
from tests import made_case_study, made_sweeps  # noqa: E402
from tests.made_judgements import FIRST_FRAME, IN_ORDER  # noqa: E402
from tests.made_sweeps import History  # noqa: E402

SIZES = (1_250, 2_500, 5_000, 10_000)
ROUNDS = 3
LANES = 10
JOB_S = 3.0
LIMIT_S, LIMIT_EXPONENT, LIMIT_MIB = 10.0, 1.1, 25.0
MIB = 2**20


def main() -> int:
    build_s(100)  # templates are compiled and scripts read once
    found = {jobs: [build_s(jobs) for _ in range(ROUNDS)] for jobs in SIZES}
    medians = {jobs: statistics.median(seconds) for jobs, seconds in found.items()}
    exponent = slope([(math.log(jobs), math.log(seconds)) for jobs, seconds in medians.items()])
    weight_mib = ten_lanes_bytes() / MIB
    results = {
        "build_s": {str(jobs): recording.spread(seconds) for jobs, seconds in found.items()},
        "growth_exponent": round(exponent, 3),
        "ten_lanes_mib_without_clips": round(weight_mib, 2),
    }
    recording.record("report", results)
    holds = medians[SIZES[-1]] <= LIMIT_S and exponent <= LIMIT_EXPONENT and weight_mib < LIMIT_MIB
    return 0 if holds else 1


def build_s(jobs: int) -> float:
    """Seconds for one revision from folded events."""
    state, material = made(jobs)
    started = time.perf_counter()
    study = case_study.build(state, material, revision=1, published_at=made_sweeps.BEGAN_AT, epoch="epoch")
    page.render_html(study)
    page.render_markdown(study)
    document.json_text(document.to_json(study, []))
    return time.perf_counter() - started


def made(jobs: int) -> tuple[SweepState, Material]:
    lanes = [replace(made_sweeps.plan(f"lane-{n}", f"Lane {n}"), device="gpu-0") for n in range(LANES)]
    sweep: SweepRecord = made_sweeps.record(lanes, seeds=range(jobs // LANES), weights=Weights.HUB)
    state = SweepState(sweep_id=sweep.sweep_id)
    state.apply_sweep_event(made_sweeps.submitted(sweep), 1)
    sequence = 1
    for number, spec in enumerate(made_sweeps.specs(sweep)):
        history = History(spec, second=number * JOB_S)
        if number % 10:
            history.complete(JOB_S)
        else:
            history.fail(FailureClass.OOM_DENOISE, "CUDA out of memory", "take a lower rung", JOB_S)
        for event in history.events:
            sequence += 1
            state.apply_job_event(event, sequence)
    score = [made_case_study.clip_score(IN_ORDER), made_case_study.clip_score(FIRST_FRAME)]
    clips = {job_id: score[n % 2] for n, (job_id, job) in enumerate(state.jobs.items()) if job.clip is not None}
    vitals = made_case_study.recording(jobs * JOB_S, every_s=1)
    return state, Material(recordings={"local": vitals}, pictures={}, keyframe=Pictures(), scores=Scores(clips=clips))


def slope(points: list[tuple[float, float]]) -> float:
    """Of the straight line with the least squares."""
    x_mean = statistics.mean(x for x, _ in points)
    y_mean = statistics.mean(y for _, y in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def ten_lanes_bytes() -> int:
    """Page, Markdown, JSON, and ten times sheet, strip and poster of noise at 16:9: nothing compresses worse."""
    study = made_case_study.study(made_case_study.sweep())
    texts = (
        page.render_html(study),
        page.render_markdown(study),
        document.json_text(document.to_json(study, [])),
    )
    pictures = (
        contact_sheet.draw_sheet(noise(SHEET), "noise", ""),
        contact_sheet.draw_strip(noise(STRIP), ""),
        contact_sheet.draw_poster(noise(POSTER)[0], ""),
    )
    return sum(len(text.encode()) for text in texts) + LANES * sum(jpeg_bytes(picture) for picture in pictures)


def noise(series: Series) -> list[Shot]:
    size = (series.width_px, series.width_px * 9 // 16)
    return [Shot(0.0, Image.effect_noise(size, 100).convert("RGB")) for _ in range(series.frames)]


def jpeg_bytes(picture: Image.Image) -> int:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=contact_sheet.JPEG_QUALITY, optimize=True)
    return written.tell()


if __name__ == "__main__":
    sys.exit(main())
