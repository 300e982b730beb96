"""The reporter as a process reads judgements from a real depot and publishes scores with its report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from screentest import objects, rubric
from screentest.judgement import SCHEMA, to_json
from screentest.kit.store import Store
from screentest.records import (
    Artifact,
    ArtifactKind,
    Completed,
    FindingEdited,
    JobEvent,
    JobSpec,
    JobState,
    Judged,
    JudgePlan,
    JudgePurpose,
    JudgingRequested,
    Outcome,
    RubricRef,
    SweepEvent,
    SweepRecord,
    SweepSubmitted,
    Task,
    Weights,
)
from screentest.rubric import Rubric
from screentest_reporter.judgements import Judgements
from screentest_reporter.sweeps import SweepState
from tests.integration.test_reporter_service import Reporter, Writer, play, reporter, upload_clip, wait_report, writer
from tests.made_judgements import FIRST_FRAME, IN_ORDER, NOTHING, OTHER, REVERSED, RUBRIC, WINDOWS, Clip
from tests.made_judgings import PIXELS, SIGLIP
from tests.made_sweeps import SWEEP_ID, History, plan, record, settled, specs, stamp
from tests.unit.test_tally import MOVING, answers

__all__ = ["reporter", "writer"]  # fixtures

HALF = (1, 1, 2, 2, 0, 0, 0, 0)


async def put_rubric(store: Store, found: Rubric, prompt_index: int = 0) -> RubricRef:
    data = rubric.to_json(found).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    await store.put(objects.rubric(sha256), data, "application/json")
    return RubricRef(
        prompt_index=prompt_index,
        key=objects.rubric(sha256),
        sha256=sha256,
        size_bytes=len(data),
        rubric_sha256=found.sha256,
    )


class Bench:
    """Judge jobs of one sweep, written as scheduler and workers write them."""

    def __init__(self, store: Store, writer: Writer, ref: RubricRef, other: RubricRef) -> None:
        self._store = store
        self._writer = writer
        self.ref = ref
        self._other = other
        self._number = 0

    async def judge(
        self,
        judge: JudgePlan,
        of: JobSpec,
        found: Mapping[str, Any],
        *,
        purpose: JudgePurpose = JudgePurpose.CLIP,
        is_kept: bool = True,
    ) -> None:
        self._number += 1
        judged = Judged(
            purpose=purpose,
            job_id=of.job_id,
            lane_id=of.lane_id,
            key="k",
            sha256="c",
            size_bytes=1,
            rubric=self.ref,
            other_rubric=self._other if purpose is JudgePurpose.CONTROLS else None,
        )
        spec = replace(
            of,
            job_id=f"judge-{self._number}",
            lane_id=judge.lane_id,
            lane_title=judge.lane_title,
            lane_digest=judge.lane_digest,
            task=Task.JUDGE,
            judged=judged,
        )
        content = {
            "schema": SCHEMA,
            "purpose": purpose.value,
            "sweep_id": of.sweep_id,
            "job_id": of.job_id,
            "clip_lane_id": of.lane_id,
            "sha256": "c",
            "judge_id": judge.lane_id,
            "judge_version": "1",
            "tier": judge.tier,
            "method": "pixels" if judge.tier == "a" else "embedding",
            "rubric_sha256": self.ref.rubric_sha256,
            "windows": WINDOWS,
            "answers": {},
            "badges": [],
            **found,
        }
        await self._writer.write(*await self._history(spec, to_json(content), is_kept=is_kept))

    async def _history(self, spec: JobSpec, data: bytes, *, is_kept: bool) -> list[JobEvent]:
        sha256 = hashlib.sha256(data).hexdigest()
        key = objects.attempt_object(ArtifactKind.JUDGEMENT, spec.sweep_id, spec.lane_id, spec.job_id, 1, sha256)
        if is_kept:
            await self._store.put(key, data, "application/json")
        artifact = Artifact(
            kind=ArtifactKind.JUDGEMENT, key=key, sha256=sha256, size_bytes=len(data), content_type="application/json"
        )
        history = History(spec, second=100 + self._number).start().wait(0.5)
        history.end(Outcome(failure_class=None, artifacts=(artifact,)))
        [*_, last] = history.events
        done = replace(
            last, event_id=f"{last.event_id}-done", state=JobState.COMPLETED, body=Completed(judgement=artifact)
        )
        return [*history.events, done]

    async def judge_all(self, shown: Mapping[str, Clip], made: Mapping[str, JobSpec], found: Rubric) -> None:
        for lane_id, clip in shown.items():
            await self.judge(PIXELS, made[lane_id], {"pixels": MOVING})
            await self.judge(SIGLIP, made[lane_id], {"answers": answers(clip, found)})


def controls_of(clip: Clip) -> dict[str, Any]:
    clips = {
        "wrong-prompt": NOTHING,
        "black": NOTHING,
        "frame-shuffled": REVERSED,
        "static-first-frame": FIRST_FRAME,
        "repeat": clip,
    }
    asked = {name: OTHER if name == "wrong-prompt" else RUBRIC for name in clips}
    runs = [
        {"control": name, "rubric_sha256": asked[name].sha256, "answers": answers(shown, asked[name])}
        for name, shown in clips.items()
    ]
    return {"answers": answers(clip), "controls": runs}


async def made_sweep(
    store: Store, writer: Writer, tmp_path: Path, shown: Mapping[str, Clip], weights: Weights = Weights.HUB
) -> tuple[SweepRecord, dict[str, JobSpec], Bench]:
    """Clips that were made and a sweep that has settled; nothing of it is judged yet."""
    ref, other = await put_rubric(store, RUBRIC), await put_rubric(store, OTHER, 1)
    sweep = record([plan(lane_id, lane_id.title()) for lane_id in shown], weights=weights)
    sweep = replace(sweep, rubrics=(ref,), judges=(PIXELS, SIGLIP))
    made = {spec.lane_id: spec for spec in specs(sweep)}
    histories = [
        History(spec, second=number * 10).complete(5, clip=await upload_clip(store, spec, tmp_path))
        for number, spec in enumerate(made.values())
    ]
    jobs = await play(writer, sweep, histories)
    await writer.write(settled(sweep, jobs, [], 60))
    return sweep, made, Bench(store, writer, ref, other)


def rows_of(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {row["lane_id"]: row for row in document["rows"]}


def numbers(document: Mapping[str, Any]) -> dict[str, float | None]:
    return {lane_id: (row["score"] or {}).get("score10") for lane_id, row in rows_of(document).items()}


def sweep_event(number: int, body: object) -> SweepEvent:
    return SweepEvent(event_id=f"more-{number}", sweep_id=SWEEP_ID, stamp=stamp(200 + number), body=body)  # type: ignore[arg-type]


async def test_judged_sweep_is_published_with_order_intervals_controls_and_heat_map(
    store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    shown = {"other": NOTHING, "full": IN_ORDER, "half": HALF}
    _, made, bench = await made_sweep(store, writer, tmp_path, shown)
    await bench.judge_all(shown, made, RUBRIC)
    await bench.judge(SIGLIP, made["full"], controls_of(IN_ORDER), purpose=JudgePurpose.CONTROLS)
    document = await wait_report(
        store,
        lambda found: (
            all(value is not None for value in numbers(found).values())
            and all(judge["why_greyed"] is None for judge in found["scoring"]["judges"])
            and bool(found["scoring"]["judges"])
        ),
    )
    ordered = sorted(numbers(document), key=lambda lane_id: -(numbers(document)[lane_id] or 0))
    assert ordered == ["full", "half", "other"]
    full = rows_of(document)["full"]["score"]
    assert full["text"].endswith("± 1.5, controls 5/5")
    assert full["low"] < full["score10"] < full["high"]
    assert full["elements"]["child"] > 0.5
    assert [beat["path_window"] for beat in full["beats"]] != [None] * 4
    assert full["rubric_sha256"] == RUBRIC.sha256
    assert "uncalibrated" in full["badges"]
    assert [row["lane_id"] for row in document["scoring"]["ranked"]["0"]] == ["full", "half", "other"]


async def test_a_new_rubric_scores_everything_anew_and_a_gone_judgement_spoils_one_row(
    store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    shown = {"wan": IN_ORDER, "ltx": IN_ORDER}
    _, made, bench = await made_sweep(store, writer, tmp_path, shown)
    await bench.judge_all(shown, made, RUBRIC)
    await wait_report(store, lambda found: all(value is not None for value in numbers(found).values()))
    edited = replace(RUBRIC, elements=RUBRIC.elements[:-1])
    bench.ref = await put_rubric(store, edited)
    await writer.write(sweep_event(1, JudgingRequested(judges=(PIXELS, SIGLIP), rubrics=(bench.ref,), by="ada")))
    await wait_report(store, lambda found: all(value is None for value in numbers(found).values()))
    await bench.judge_all({"wan": IN_ORDER}, made, edited)
    await bench.judge(PIXELS, made["ltx"], {"pixels": MOVING})
    await bench.judge(SIGLIP, made["ltx"], {"answers": answers(IN_ORDER, edited)}, is_kept=False)
    await writer.write(sweep_event(2, FindingEdited(row=made["ltx"].job_id, text="Ask again", by="ada")))
    document = await wait_report(
        store, lambda found: numbers(found)["wan"] is not None and rows_of(found)["ltx"]["finding"] == "Ask again"
    )
    assert rows_of(document)["wan"]["score"]["rubric_sha256"] == edited.sha256
    gone = rows_of(document)["ltx"]["score"]
    assert gone["score10"] is None
    assert "the judgement is gone from the depot" in gone["not_scored"]


@pytest.mark.parametrize("weights", [Weights.MINIATURE])
async def test_random_weights_are_never_scored(
    store: Store, writer: Writer, reporter: Reporter, tmp_path: Path, weights: Weights
) -> None:
    _, made, bench = await made_sweep(store, writer, tmp_path, {"wan": IN_ORDER}, weights)
    await bench.judge(PIXELS, made["wan"], {"pixels": MOVING})
    document = await wait_report(store, lambda found: rows_of(found)["wan"]["score"] is not None)
    row = rows_of(document)["wan"]
    assert (row["prompt_match"], row["score"]["score10"]) == ("not scored", None)
    assert "random weights" in row["finding"]


# ---- what is read from the depot, and how long it is kept


class Folded:
    """Takes events as a Writer does, for a reporter that is a function call away."""

    def __init__(self) -> None:
        self.state = SweepState(sweep_id=SWEEP_ID)

    async def write(self, *events: JobEvent | SweepEvent) -> None:
        for number, event in enumerate(events, start=self.state.last_sequence + 1):
            if isinstance(event, JobEvent):
                self.state.apply_job_event(event, number)
            else:
                self.state.apply_sweep_event(event, number)


async def judged_once(store: Store) -> tuple[SweepState, JobSpec]:
    """A sweep with one clip and one judgement of its pixels, as the reporter folds it."""
    ref, other = await put_rubric(store, RUBRIC), await put_rubric(store, OTHER, 1)
    sweep = replace(record([plan("wan", "Wan")], weights=Weights.HUB), rubrics=(ref,), judges=(PIXELS,))
    [made] = specs(sweep)
    folded = Folded()
    await folded.write(sweep_event(0, SweepSubmitted(record=sweep)), *History(made).complete(5).events)
    await Bench(store, folded, ref, other).judge(PIXELS, made, {"pixels": MOVING})  # type: ignore[arg-type]
    return folded.state, made


async def test_no_more_is_read_of_a_judgement_than_was_recorded(store: Store) -> None:
    state, made = await judged_once(store)
    [job] = state.judging.values()
    assert job.judgement is not None
    await store.put(job.judgement.key, b" " * (job.judgement.size_bytes + 1), "application/json")
    scores = await Judgements(store).scores(state)
    said = scores.clips[made.job_id].score.not_scored
    assert "the judgement in the depot is larger than what was recorded" in said
    huge = replace(job.judgement, size_bytes=10**9)
    state.judging[job.spec.job_id] = replace(job, judgement=huge)
    scores = await Judgements(store).scores(state)
    assert "the judgement has 954 MiB; 16 are read" in scores.clips[made.job_id].score.not_scored


async def test_a_finished_report_keeps_no_judgement_while_another_is_in_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _ = await judged_once(store)
    gets: list[str] = []
    real = store.get

    async def get(key: str, **more: Any) -> bytes:
        gets.append(key)
        return await real(key, **more)

    monkeypatch.setattr(store, "get", get)
    judgements = Judgements(store)
    in_work = replace(state, sweep_id="in-work", judging={})
    for sweep in (state, in_work, state):
        await judgements.scores(sweep)
    assert len(gets) == 2  # the judgement and the rubric that both share
    judgements.forget(state.sweep_id)
    await judgements.scores(in_work)
    assert len(gets) == 2
    await judgements.scores(state)
    assert len(gets) == 3
