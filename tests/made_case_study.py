"""The published sweep of ten lanes as this house would have recorded it: three clips, seven failures, vitals, scores.

Names, statuses, latencies and causes are those of the published table; marks, survivors, phases and judgements are made
up, and so are their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from screentest.records import (
    DeviceProof,
    FailureClass,
    GpuInfo,
    GpuSample,
    JobSpec,
    Keyframe,
    LanePlan,
    Mark,
    MarkKind,
    Outcome,
    PhaseMemory,
    PhaseTime,
    SweepRecord,
    Task,
    VitalsBatch,
    Weights,
)
from screentest_reporter import case_study, finding, ranking, scoring
from screentest_reporter.case_study import CaseStudy, Material
from screentest_reporter.controls import Control, ControlResult, Result, Verdict
from screentest_reporter.model_table import Pictures
from screentest_reporter.ranking import LaneScores
from screentest_reporter.scores import ClipScore, JudgeVerdict, KeyframeScore, Scores
from screentest_reporter.scoring import Score
from screentest_reporter.sweeps import SweepState
from screentest_reporter.vitals import Recording
from tests.made_judgements import FIRST_FRAME, NOTHING, RUBRIC, Clip, asked, pixels, seeing
from tests.made_sweeps import BEGAN_AT, History, failure, plan, proof, record, settled, specs, stamp, submitted, success

# Name, task, seconds, and what the published table says of it.
COMPLETED = (
    ("wan2-1-t2v-1-3b", "Wan 2.1 T2V 1.3B", 343.94),
    ("cogvideox-2b", "CogVideoX 2B", 209.27),
    ("cogvideox-5b", "CogVideoX 5B", 714.54),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    lane_id: str
    title: str
    task: Task
    seconds: float
    failure_class: FailureClass
    cause: str
    fix: str = ""
    survivors: int = 0


FAILED = (
    Failed(
        lane_id="mochi-1-preview",
        title="Mochi 1 Preview",
        task=Task.T2V,
        seconds=20.73,
        failure_class=FailureClass.OOM_LOAD,
        cause="CUDA out of memory",
    ),
    Failed(
        lane_id="skyreels-v2-df-14b-540p",
        title="SkyReels V2 DF 14B 540P",
        task=Task.T2V,
        seconds=7200.01,
        failure_class=FailureClass.TIMEOUT,
        cause="7200 s are over at 960x544, 49 frames",
        survivors=3,
    ),
    Failed(
        lane_id="ltx-video-13b-distilled",
        title="LTX Video 13B Distilled",
        task=Task.I2V,
        seconds=48.88,
        failure_class=FailureClass.OOM_DENOISE,
        cause="CUDA out of memory",
    ),
    Failed(
        lane_id="hunyuanvideo-i2v",
        title="HunyuanVideo I2V",
        task=Task.I2V,
        seconds=300.56,
        failure_class=FailureClass.CONDITIONING,
        cause="IndexError after the image was handed over",
    ),
    Failed(
        lane_id="skyreels-v1-hunyuan-i2v",
        title="SkyReels V1 Hunyuan I2V",
        task=Task.I2V,
        seconds=5.75,
        failure_class=FailureClass.LAYOUT,
        cause="the repository has no model_index.json",
    ),
    Failed(
        lane_id="skyreels-v2-i2v-14b-540p",
        title="SkyReels V2 I2V 14B 540P",
        task=Task.I2V,
        seconds=607.73,
        failure_class=FailureClass.CHANNELS,
        cause="36 channels wanted, 16 given",
    ),
    Failed(
        lane_id="svd-xt",
        title="Stable Video Diffusion XT",
        task=Task.I2V,
        seconds=7.71,
        failure_class=FailureClass.BAD_KWARGS,
        cause="unexpected keyword argument guidance_scale",
        fix="drop guidance_scale in the lane's [parameters]",
    ),
)
CLAMPED = Mark(
    kind=MarkKind.CLAMPED, parameter="num_frames", requested="24", effective="25", reason="frames must be 4k+1"
)
KEYFRAME = Keyframe(key="keyframes/k.png", sha256="a" * 64, width_px=1280, height_px=720, size_bytes=1)
# Share of an attempt that each phase takes.
SHARES = (("loading", 0.1), ("encoding_prompt", 0.02), ("denoising", 0.75), ("decoding", 0.08), ("encoding", 0.05))
GIB = 2**30


def lanes(device: str = "gpu-0") -> list[LanePlan]:
    completed = [plan(lane_id, title, marks=[CLAMPED] if "cog" in lane_id else []) for lane_id, title, _ in COMPLETED]
    failed = [plan(f.lane_id, f.title, f.task) for f in FAILED]
    return [replace(lane, device=device) for lane in (*completed, *failed)]


def sweep(title: str = "The Architect's Stillness", **changes: object) -> SweepRecord:
    return record(lanes(), title=title, weights=Weights.HUB, keyframe=KEYFRAME, **changes)  # type: ignore[arg-type]


def state(made: SweepRecord) -> SweepState:
    """Settled; one job after the other, on one GPU."""
    found = SweepState(sweep_id=made.sweep_id)
    found.apply_sweep_event(submitted(made), 1)
    second = 2.0
    sequence = 1
    for number, spec in enumerate(specs(made)):
        history = _history(spec, number, second)
        second = history.second + 2
        for event in history.events:
            sequence += 1
            found.apply_job_event(event, sequence)
    clean = DeviceProof(host="local", device="gpu-0", proof=proof(second=second))
    found.apply_sweep_event(settled(made, list(found.jobs.values()), [clean], second), sequence + 1)
    return found


def _history(spec: JobSpec, number: int, second: float) -> History:
    history = History(spec, second=second)
    if number < len(COMPLETED):
        flags = ["black"] if number == 0 else []
        outcome = replace(_phased(success(spec, flags), second, COMPLETED[number][2]), gpu_name="NVIDIA GB10")
        history.start().wait(COMPLETED[number][2]).end(outcome)
        return history.succeed()
    wanted = FAILED[number - len(COMPLETED)]
    outcome = replace(failure(wanted.failure_class, wanted.cause, wanted.fix), survivors_killed=wanted.survivors)
    history.start().wait(wanted.seconds).end(_phased(outcome, second, wanted.seconds, upto=3))
    return history.give_up(wanted.failure_class, wanted.cause, wanted.fix)


def _phased(outcome: Outcome, second: float, seconds: float, upto: int = len(SHARES)) -> Outcome:
    began_ns, phases = stamp(second).boottime_ns, []
    for phase, share in SHARES[:upto]:
        phases.append(PhaseTime(phase=phase, seconds=share * seconds, started_boottime_ns=began_ns))
        began_ns += int(share * seconds * 1e9)
    peaks = tuple(PhaseMemory(phase=phase, peak_bytes=20 * GIB) for phase, _ in SHARES[:upto])
    return replace(outcome, phases=tuple(phases), peak_memory_by_phase=peaks, peak_device_memory_bytes=20 * GIB)


def recording(seconds: float, every_s: float = 5) -> Recording:
    """A GPU that draws 60 W, and 93.66 W once; its counter agrees."""
    gpu = GpuInfo(uuid="GPU-a", index=0, name="NVIDIA GB10", memory_total_bytes=128 * GIB, memory_kind="unified")
    made = Recording(host="local")
    for number in range(int(seconds / every_s) + 2):
        at_s = number * every_s
        sample = GpuSample(
            boottime_ns=stamp(at_s).boottime_ns,
            gpu_uuid=gpu.uuid,
            utilisation_percent=96.0 if number % 20 else 5.0,
            memory_used_bytes=20 * GIB + number % 7 * GIB // 4,
            temperature_c=83.0 - number % 11,
            power_w=93.66 if number == 30 else 60.0,
            energy_mj=int(60_000 * at_s),
        )
        made.add(
            VitalsBatch(
                host="local",
                stamp=stamp(at_s),
                source="nvml",
                nvml_error=None,
                driver_version="580.95",
                driver_is_stub=False,
                gpus=(gpu,),
                gpu_samples=(sample,),
                host_samples=(),
                rate_hz=1,
            )
        )
    return made


# What the judge sees in each clip: nothing in the black one, texture, and a place with a little of its first beat.
SEEN_BY_CLIP: tuple[tuple[Clip, tuple[str, ...], frozenset[str]], ...] = (
    (NOTHING, ("black",), frozenset()),
    (FIRST_FRAME, ("frozen",), frozenset(e.id for e in RUBRIC.elements) - {"gothic-texture", "gothic-cathedral"}),
    (
        FIRST_FRAME,
        (),
        frozenset(e.id for e in RUBRIC.elements) - {"gothic-texture", "gothic-cathedral", "brain-chamber"},
    ),
)


def clip_score(clip: Clip, flags: Sequence[str] = (), absent: frozenset[str] = frozenset()) -> ClipScore:
    found = scoring.score(RUBRIC, [asked(seeing(absent=absent), clip)], pixels(*flags, zoom_in=0.2))
    return ClipScore(rubric=RUBRIC, score=found, finding=finding.line(RUBRIC, found))


def scores(made: SweepRecord) -> Scores:
    """Of the three clips, the judge with its controls, and the keyframe, which lacks most of the prompt."""
    jobs = specs(made)[: len(COMPLETED)]
    clips = {
        spec.job_id: clip_score(clip, flags, absent)
        for spec, (clip, flags, absent) in zip(jobs, SEEN_BY_CLIP, strict=True)
    }
    found: list[tuple[JobSpec, Score]] = [(spec, clips[spec.job_id].score) for spec in jobs]
    presences = {e.id: 0.9 if e.id in {"gothic-cathedral", "gothic-texture"} else 0.1 for e in RUBRIC.elements}
    return Scores(
        clips=clips,
        ranked={0: ranking.ranked([LaneScores(lane_id=spec.lane_id, scores=(score,)) for spec, score in found])},
        judges=(JudgeVerdict(judge_id="judge-c", judge_title="Judge C", verdict=verdict(Result.HELD)),),
        keyframe=(KeyframeScore(prompt_index=0, rubric=RUBRIC, presences=presences),),
    )


def _scores(made: SweepRecord, judges: tuple[JudgeVerdict, ...] | None) -> Scores:
    """``judges``: in place of the one that holds; the first one's controls stand beside every judged number."""
    found = scores(made)
    if judges is None:
        return found
    controls = judges[0].verdict
    clips = {key: replace(clip, controls=controls) if clip.score.parts else clip for key, clip in found.clips.items()}
    return replace(found, judges=judges, clips=clips)


def verdict(black: Result) -> Verdict:
    results = tuple(
        ControlResult(control=control, result=black if control is Control.BLACK else Result.HELD, why="as it should")
        for control in Control
    )
    return Verdict(results=results, why_greyed="" if black is Result.HELD else f"black {black.value}: as it should not")


def study(
    made: SweepRecord,
    *,
    with_scores: bool = True,
    pictures: dict[str, Pictures] | None = None,
    keyframe: Pictures | None = None,
    found: SweepState | None = None,
    judges: tuple[JudgeVerdict, ...] | None = None,
) -> CaseStudy:
    material = Material(
        recordings={"local": recording(9600)},
        pictures=pictures or {},
        keyframe=keyframe or Pictures(error="there is none"),
        scores=_scores(made, judges) if with_scores else Scores(),
    )
    return case_study.build(found or state(made), material, revision=1, published_at=BEGAN_AT, epoch="epoch")
