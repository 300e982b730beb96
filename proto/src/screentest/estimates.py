"""What an attempt will take: seconds, their range, energy and memory, from what clips have taken before. Pure.

A clip is encoding + steps + decoding. A step takes its operations over the rate at which this lane computes, which a
completed clip of it on this GPU has shown; else the rate is carried over from a GPU where one has, by the ratio that
other lanes or published clips show between the two; else it is unknown and the estimate says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Final

from screentest import cost, memory
from screentest.lanes import Lane, Weights, usable_rungs
from screentest.measured import Experience, Measured, Shape
from screentest.records import Estimate, JobSpec, Outcome

STEPS_KEPT: Final = 16  # medians of the latest clips: enough for a spread, few enough to follow a new driver

# Ranges where there is no spread to read one from: chosen, not fitted; repeated clips would have to be measured.
SPREAD: Final = 1.05  # beside the least and the most of several clips
ONE_CLIP: Final = 1.15
OTHER_SHAPE: Final = 1.25  # attention and matrix products have different rates, and their shares move with the shape
OTHER_RUNG: Final = 1.25  # streaming and fp8 cost up to this, but for LTX
OTHER_LANES_HERE: Final = 1.3  # the GPU's ratio to another as other lanes show it
PLAIN_RUNG: Final = "resident"
LANES_FOR_A_SPREAD: Final = 3
PUBLISHED: Final = 1.5  # the same from seconds that others published: unknown drivers, software and clip edges


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number with what it may be."""

    low: float
    mid: float
    high: float

    def times(self, other: Range) -> Range:
        return Range(low=self.low * other.low, mid=self.mid * other.mid, high=self.high * other.high)

    def wider(self, factor: float) -> Range:
        return Range(low=self.low / factor, mid=self.mid, high=self.high * factor)

    def plus(self, other: Range) -> Range:
        return Range(low=self.low + other.low, mid=self.mid + other.mid, high=self.high + other.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be computed: a clip of this shape, after the rung, and the operations of one of its steps."""

    lane: Lane
    rung: int
    shape: Shape
    steps: int
    step_tflop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Of one GPU. encode_s: up to the first ordinary step. clips: that the rate was learned from, 0 = carried over."""

    step_s: Range
    encode_s: Range
    decode_s: Range
    clips: int
    basis: str

    def on(self, ratio: Range, basis: str) -> Times:
        """The same on a GPU that takes `ratio` as long."""
        return Times(
            step_s=self.step_s.times(ratio),
            encode_s=self.encode_s.times(ratio),
            decode_s=self.decode_s.times(ratio),
            clips=0,
            basis=basis,
        )


def estimates(
    lane: Lane,
    shape: Shape,
    steps: int,
    gpu: str | None,
    measured: Measured,
    *,
    unified: bool = False,
    call: Mapping[str, object] | None = None,
    weights: Weights = "hub",
    torch_bytes: int | None = None,
) -> tuple[Estimate, ...]:
    """One for each rung that is of use on this kind of memory; see `estimate`."""
    return tuple(
        estimate(
            lane,
            rung,
            shape,
            steps,
            gpu,
            measured,
            unified=unified,
            call=call,
            weights=weights,
            torch_bytes=torch_bytes,
        )
        for rung in usable_rungs(lane, unified)
    )


def estimate(
    lane: Lane,
    rung: int,
    shape: Shape,
    steps: int,
    gpu: str | None,
    measured: Measured,
    *,
    unified: bool = False,
    call: Mapping[str, object] | None = None,
    weights: Weights = "hub",
    torch_bytes: int | None = None,
) -> Estimate:
    """What a clip that is asked for `shape` takes at a rung of the ladder.

    gpu: as the driver says it, None = computed without one. call: the pipeline's keyword arguments, None = the lane's
    own. torch_bytes: what torch may hold, where that is known. Everything is None for miniature weights, which have
    other sizes, and without a GPU.
    """
    step = lane.ladder[rung]
    unknown = Estimate(rung=rung, rung_name=step.name, changes_picture=step.changes_picture)
    if weights == "miniature" or gpu is None:
        return replace(unknown, basis="miniature weights" if weights == "miniature" else "no GPU is known")
    peak = memory.peak(lane, rung, shape, measured, unified=unified, torch_bytes=torch_bytes)
    known = replace(
        unknown,
        peak_memory_bytes=None if peak is None else peak.likely_bytes,
        load_s=_load_s(lane, step.name, gpu, weights, measured.clips),
        basis="nobody has measured this lane's time on a GPU" if peak is None else f"memory {peak.basis}",
    )
    made = memory.at_rung(lane, rung, shape)
    step_tflop = _step_tflop(lane, made, call)
    if step_tflop is None:
        return replace(known, basis="the lane file does not say what a clip costs ([cost])")
    work = Work(lane=lane, rung=rung, shape=made, steps=steps, step_tflop=step_tflop)
    times = _times(work, gpu, measured)
    if times is None:
        return known
    clip_s = times.encode_s.plus(times.step_s.times(_exactly(steps))).plus(times.decode_s)
    return replace(
        known,
        clip_s=clip_s.mid,
        low_s=clip_s.low,
        high_s=clip_s.high,
        energy_wh=_energy_wh(work, gpu, measured.clips),
        clips=times.clips,
        basis=times.basis if peak is None else f"{times.basis}; memory {peak.basis}",
    )


# --- learning ---------------------------------------------------------------------------------------------------------


def learn(
    measured: Measured,
    lane: Lane,
    spec: JobSpec,
    rung: int,
    outcome: Outcome,
    *,
    unified: bool = False,
    energy_wh: float | None = None,
) -> Measured:
    """With what a job's attempt at a rung of its spec has shown; unchanged where it shows nothing.

    Nothing is learned from an attempt without clip, without GPU, or of miniature weights.
    """
    told = _told(lane, spec, rung, outcome, unified, energy_wh)
    return measured if told is None else remember(measured, told)


def remember(measured: Measured, told: Experience, *, is_older: bool = False) -> Measured:
    """With one more experience, the last of what is learned then. is_older: than what is known of the same kind."""
    known = measured.learned.get(told.key)
    merged = told if known is None else _merged(told, known) if is_older else _merged(known, told)
    others = {key: clip for key, clip in measured.learned.items() if key != told.key}
    return replace(measured, learned={**others, told.key: merged})


def _told(
    lane: Lane, spec: JobSpec, rung: int, outcome: Outcome, unified: bool, energy_wh: float | None
) -> Experience | None:
    clip = outcome.clip
    if clip is None or outcome.failure_class is not None or outcome.gpu_name is None or outcome.step_s is None:
        return None
    if spec.weights == "miniature":
        return None
    shape = Shape(width_px=clip.width_px, height_px=clip.height_px, num_frames=clip.frames)
    seconds = {phase.phase: phase.seconds for phase in outcome.phases}
    load_s = seconds.get(memory.LOADING)
    return Experience(
        lane_id=lane.id,
        rung=spec.rungs[rung],
        shape=shape,
        gpu=outcome.gpu_name,
        steps=spec.steps,
        clips=1,
        step_s=(outcome.step_s,),
        step_tflop=_step_tflop(lane, shape, {part.name: part.value for part in spec.call}),
        memory_cap_gib=spec.memory_cap_gib,
        encode_s=seconds.get(memory.ENCODING),
        start_s=max(seconds.get(memory.DENOISING, 0.0) - outcome.steps_done * outcome.step_s, 0.0),
        decode_s=seconds.get(memory.DECODING),
        load_s={} if load_s is None else {spec.weights.value: load_s},
        held_bytes={phase.phase: phase.peak_bytes for phase in outcome.peak_memory_by_phase},
        energy_wh=energy_wh,
        is_unified=unified,
    )


def _merged(before: Experience, told: Experience) -> Experience:
    """Both, as one experience of the same key."""
    return replace(
        told,
        clips=before.clips + told.clips,
        step_s=(*before.step_s, *told.step_s)[-STEPS_KEPT:],
        encode_s=before.encode_s if told.encode_s is None else told.encode_s,
        decode_s=before.decode_s if told.decode_s is None else told.decode_s,
        load_s={**before.load_s, **told.load_s},
        held_bytes=_lesser(before.held_bytes, told.held_bytes),
        energy_wh=_mean_wh(before, told),
    )


def _lesser(before: Mapping[str, int], told: Mapping[str, int]) -> Mapping[str, int]:
    if not before or not told:
        return before or told
    return min(before, told, key=lambda held: max(held.values()))


def _mean_wh(before: Experience, told: Experience) -> float | None:
    if before.energy_wh is None or told.energy_wh is None:
        return before.energy_wh if told.energy_wh is None else told.energy_wh
    clips = before.clips + told.clips
    return (before.energy_wh * before.clips + told.energy_wh * told.clips) / clips


# --- operations -------------------------------------------------------------------------------------------------------


def _step_tflop(lane: Lane, shape: Shape, call: Mapping[str, object] | None) -> float | None:
    """None where the lane file has no `[cost]`."""
    if lane.cost is None:
        return None
    own = lane.pipeline_call("hub", lane.defaults_for("hub"))
    guided = cost.is_guided(lane.cost, own if call is None else call)
    return cost.clip_tflop(lane.cost, shape, 1, guided=guided)


# --- seconds ----------------------------------------------------------------------------------------------------------


def _times(work: Work, gpu: str, measured: Measured) -> Times | None:
    """On this GPU, from its own clips of the lane, else carried over."""
    own = [clip for clip in measured.clips if clip.lane_id == work.lane.id and clip.step_tflop]
    here = [clip for clip in own if clip.gpu == gpu]
    if here and (times := _learned(work, here, measured)) is not None:
        return times
    ratios = _ratios(gpu, measured)
    for reference, (ratio, why) in ratios.items():
        there = [clip for clip in own if clip.gpu == reference]
        if there and (times := _learned(work, there, measured)) is not None:
            return times.on(ratio, f"carried over from {reference} by {why}")
    return _by_other_lanes(work, gpu, measured.clips) or _by_other_lanes_elsewhere(work, ratios, measured)


def _learned(work: Work, clips: list[Experience], measured: Measured) -> Times | None:
    """Of clips of this lane on one GPU: the most alike of them. None where they do not know a phase."""
    alike = max(_likeness(work, clip) for clip in clips)
    clips = [clip for clip in clips if _likeness(work, clip) == alike]
    is_same_rung, is_same_shape = alike
    step_s = _range([float(step_s) * _operations(work, clip) for clip in clips for step_s in clip.step_s])
    encode_s = _range([clip.encode_s + clip.start_s for clip in clips if clip.encode_s is not None])
    decode_s = _range([clip.decode_s * _pixels(work, clip) for clip in clips if clip.decode_s is not None])
    if step_s is None or encode_s is None or decode_s is None:
        return None
    if not is_same_rung:
        step_s = step_s.times(_rung_ratio(work, clips[-1].rung, measured)).wider(OTHER_RUNG)
    if not is_same_shape:
        step_s, decode_s = step_s.wider(OTHER_SHAPE), decode_s.wider(OTHER_SHAPE)
    count = sum(clip.clips for clip in clips)
    at = "" if all(alike) else f" at rung {clips[-1].rung!r}, {_size(clips[-1].shape)}"
    basis = f"{count} clip{'s' if count > 1 else ''} on {clips[-1].gpu}{at}"
    return Times(step_s=step_s, encode_s=encode_s, decode_s=decode_s, clips=count, basis=basis)


def _likeness(work: Work, clip: Experience) -> tuple[bool, bool]:
    """(same rung, same shape): the greater the more alike."""
    return memory.is_placed_as(work.lane, clip, work.rung), clip.shape == work.shape


def _operations(work: Work, clip: Experience) -> float:
    """Of a step of the work, over those of the clip's."""
    return work.step_tflop / float(clip.step_tflop or work.step_tflop)


def _pixels(work: Work, clip: Experience) -> float:
    return work.shape.pixels / clip.shape.pixels


def _rung_ratio(work: Work, rung: str, measured: Measured) -> Range:
    """What a step at the work's rung takes over one at `rung`, on whichever GPU both were measured; else 1."""
    own = [clip for clip in measured.clips if clip.lane_id == work.lane.id]
    wanted = [clip for clip in own if memory.is_placed_as(work.lane, clip, work.rung)]
    ratios = [
        _s_per_tflop(at) / _s_per_tflop(other)
        for at in wanted
        for other in own
        if other.rung == rung and (other.gpu, other.shape) == (at.gpu, at.shape) and at.step_tflop and other.step_tflop
    ]
    return _exactly(median(ratios)) if ratios else _exactly(1.0)


def _s_per_tflop(clip: Experience) -> float:
    """Seconds per 1e12 operations of a step; only of clips that know their operations."""
    assert clip.step_tflop
    return median(clip.step_s) / float(clip.step_tflop)


def _ratios(gpu: str, measured: Measured) -> dict[str, tuple[Range, str]]:
    """How long this GPU takes over others that clips were measured on, and who says so; by the other's name."""
    found: dict[str, tuple[Range, str]] = {}
    for reference in sorted({clip.gpu for clip in measured.clips} - {gpu}):
        if (ratio := _by_lanes_on_both(gpu, reference, measured.clips)) is not None:
            found[reference] = ratio, "the lanes measured on both"
        elif (published := _by_published_clips(gpu, reference, measured)) is not None:
            found[reference] = published
    return found


def _by_lanes_on_both(gpu: str, reference: str, clips: Iterable[Experience]) -> Range | None:
    by_place = {
        (clip.gpu, clip.lane_id, clip.rung): _s_per_tflop(clip)
        for clip in clips
        if clip.gpu in (gpu, reference) and clip.step_tflop
    }
    ratios = [
        here / by_place[reference, lane_id, rung]
        for (on, lane_id, rung), here in by_place.items()
        if on == gpu and (reference, lane_id, rung) in by_place
    ]
    return None if not ratios else _around(ratios).wider(OTHER_LANES_HERE)


def _by_published_clips(gpu: str, reference: str, measured: Measured) -> tuple[Range, str] | None:
    for speed in measured.speeds:
        if gpu not in speed.gpus:
            continue
        whole = {clip.lane_id: _clip_s(clip) for clip in measured.shipped if _is_plain(clip, reference)}
        ratios = [s / own for lane_id, s in speed.clip_s.items() if (own := whole.get(lane_id)) is not None]
        if ratios:
            return _around(ratios).wider(PUBLISHED), f"published seconds ({speed.source})"
    return None


def _is_plain(clip: Experience, gpu: str) -> bool:
    return clip.gpu == gpu and clip.rung == PLAIN_RUNG and clip.memory_cap_gib is None


def _clip_s(clip: Experience) -> float | None:
    if clip.encode_s is None or clip.decode_s is None:
        return None
    return clip.encode_s + clip.start_s + clip.steps * median(clip.step_s) + clip.decode_s


def _by_other_lanes(work: Work, gpu: str, clips: Iterable[Experience]) -> Times | None:
    """As if the lane computed at the rates of the others on this GPU. None where there are too few to show a spread."""
    known = [clip for clip in clips if _is_plain(clip, gpu) and clip.step_tflop]
    encode_s = [clip.encode_s + clip.start_s for clip in known if clip.encode_s is not None]
    decode_s = [clip.decode_s * _pixels(work, clip) for clip in known if clip.decode_s is not None]
    if len({clip.lane_id for clip in known}) < LANES_FOR_A_SPREAD or not encode_s or not decode_s:
        return None
    count = sum(clip.clips for clip in known)
    return Times(
        step_s=_around([_s_per_tflop(clip) * work.step_tflop for clip in known]),
        encode_s=_around(encode_s),
        decode_s=_around(decode_s),
        clips=count,
        basis=f"rates of {len(known)} other lanes on {gpu}; nobody has measured this one",
    )


def _by_other_lanes_elsewhere(work: Work, ratios: Mapping[str, tuple[Range, str]], measured: Measured) -> Times | None:
    for reference, (ratio, why) in ratios.items():
        if (times := _by_other_lanes(work, reference, measured.clips)) is not None:
            return times.on(ratio, f"{times.basis}; carried over by {why}")
    return None


def _load_s(lane: Lane, rung: str, gpu: str, weights: Weights, clips: Iterable[Experience]) -> float | None:
    """The last load of such weights on this GPU, at this rung where there was one."""
    loads = [
        (clip.rung == rung, clip.load_s[weights])
        for clip in clips
        if (clip.lane_id, clip.gpu) == (lane.id, gpu) and weights in clip.load_s
    ]
    at_rung = [load_s for is_same, load_s in loads if is_same]
    return next((float(found[-1]) for found in (at_rung, [load_s for _, load_s in loads]) if found), None)


# --- energy -----------------------------------------------------------------------------------------------------------


def _energy_wh(work: Work, gpu: str, clips: Iterable[Experience]) -> float | None:
    """By the operations, as this lane's clips at this rung on this very GPU took it; else as the lane's at any rung
    did, else as other lanes'.
    """
    known = [clip for clip in clips if clip.gpu == gpu and clip.energy_wh is not None and clip.step_tflop]
    own = [clip for clip in known if clip.lane_id == work.lane.id]
    used = [clip for clip in own if memory.is_placed_as(work.lane, clip, work.rung)] or own or known
    per_tflop = [clip.energy_wh / (clip.steps * clip.step_tflop) for clip in used if clip.energy_wh and clip.step_tflop]
    return fmean(per_tflop) * work.steps * work.step_tflop if per_tflop else None


# --- ranges -----------------------------------------------------------------------------------------------------------


def _exactly(value: float) -> Range:
    return Range(low=value, mid=value, high=value)


def _around(values: Iterable[float]) -> Range:
    """The median, and the least and the most."""
    found = [float(value) for value in values]
    return Range(low=min(found), mid=median(found), high=max(found))


def _range(values: Iterable[float]) -> Range | None:
    """Around several values, or around one; None of none."""
    found = list(values)
    if not found:
        return None
    return _around(found).wider(ONE_CLIP if len(found) == 1 else SPREAD)


def _size(shape: Shape) -> str:
    return f"{shape.width_px}x{shape.height_px}x{shape.num_frames}"
