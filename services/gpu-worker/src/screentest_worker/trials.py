"""What the doctor has a lane's miniature do, and what the results say of the lane file. Pure.

A trial is one clip at small settings; each result is held against what the file promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from screentest import cost
from screentest.lanes import Lane, Value, call_at, shape_at, usable_rungs
from screentest.measured import Shape
from screentest_worker.signature import Method

PROMPT: Final = "a doll in a red dress"
OTHER_PROMPT: Final = "a soldier in a control room, slow dolly in"
SEED: Final = 7
OTHER_STEPS: Final = 3
MANY_STEPS: Final = 200  # of an attempt that is cancelled after the first
FEW_FRAMES: Final = 5
COST_TOLERANCE: Final = 0.01  # the polynomial itself is up to 0.5 % off where an UNet has many levels
PHASES: Final = ("encoding_prompt", "denoising", "decoding", "decoded")


class Status(StrEnum):
    OK = "ok"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check. ``detail``: what was seen, or what is wrong. ``fix``: empty unless failed. Both one line."""

    check: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One clip. ``settings``: by generic name. ``call``: keywords that replace those of the settings."""

    settings: Mapping[str, Value]
    call: Mapping[str, Any] = field(default_factory=dict)
    rung: int = 0
    seed: int = SEED
    keyframe: int = 0
    cancel_after_step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """As the runner tells it."""

    failure_class: str
    phase: str
    message: str

    @property
    def line(self) -> str:
        return f"{self.failure_class} while {self.phase}: {' '.join(self.message.split())}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a trial. steps: (step, of how many) as reported. shape, digest: None without a clip."""

    phases: tuple[str, ...]
    steps: tuple[tuple[int, int], ...]
    seconds: float
    failure: Failure | None = None
    shape: Shape | None = None
    digest: str | None = None

    @property
    def said(self) -> str:
        """What came of it, for a sentence."""
        if self.shape is None:
            return self.failure.line if self.failure is not None else "nothing"
        return f"{self.shape.num_frames} frames of {self.shape.width_px}x{self.shape.height_px}"


def passed(check: str, detail: str) -> Finding:
    return Finding(check=check, status=Status.OK, detail=detail)


def failed(check: str, detail: str, fix: str) -> Finding:
    return Finding(check=check, status=Status.FAILED, detail=detail, fix=fix)


def outcome(answer: Mapping[str, Any]) -> Outcome:
    """The child's answer to a trial."""
    found = answer.get("failure")
    size = {name: answer[key] for name, key in _SHAPE_KEYS.items()} if "digest" in answer else None
    return Outcome(
        phases=tuple(answer.get("phases", ())),
        steps=tuple((step, steps) for step, steps in answer.get("steps", ())),
        seconds=answer.get("seconds", 0.0),
        failure=Failure(**found) if found is not None else None,
        shape=Shape(**size) if size is not None else None,
        digest=answer.get("digest"),
    )


_SHAPE_KEYS: Final = {"width_px": "width_px", "height_px": "height_px", "num_frames": "frames"}


# ---- what is tried


def own(lane: Lane) -> Trial:
    """The miniature's own settings."""
    return Trial(settings={**lane.defaults_for("miniature"), "prompt": PROMPT})


def small(lane: Lane, **changes: Value) -> Trial:
    """Few frames: most trials ask whether something happens at all."""
    return Trial(settings={**own(lane).settings, "num_frames": few_frames(lane), **changes})


def few_frames(lane: Lane) -> int:
    return lane.constraints.frames.nearest(FEW_FRAMES)


def call_of(lane: Lane, trial: Trial) -> dict[str, Any]:
    """The pipeline's keyword arguments, with JSON's lists."""
    return {**call_at(lane, trial.rung, lane.pipeline_call("miniature", trial.settings)), **trial.call}


def shape_of(lane: Lane, trial: Trial) -> Shape:
    """What the trial must come out as."""
    asked = (int(trial.settings[name]) for name in ("width_px", "height_px", "num_frames"))
    width_px, height_px, num_frames = shape_at(lane, trial.rung, *asked)
    return Shape(width_px=width_px, height_px=height_px, num_frames=num_frames)


def changed_parameters(lane: Lane) -> dict[str, Trial]:
    """By generic name: a trial that differs from `small` in this parameter alone; only those that show in a clip."""
    base = small(lane)
    guidance = float(base.settings.get("guidance_scale", 1.0))
    values: dict[str, Value] = {
        "prompt": OTHER_PROMPT,
        "negative_prompt": "blurred",
        "guidance_scale": guidance + 3.0,
    }
    found = {name: Trial(settings={**base.settings, name: value}) for name, value in values.items() if lane.takes(name)}
    if lane.takes("keyframe"):
        found["keyframe"] = Trial(settings=base.settings, keyframe=1)
    return found


def cancelled(lane: Lane) -> Trial:
    """More steps than anybody waits for, cancelled after the first."""
    base = small(lane)
    call = call_of(lane, base)
    if "timesteps" in call:  # its length is the number of steps
        many = list(range(1000, 1000 - MANY_STEPS, -1))
        return Trial(settings=base.settings, call={"timesteps": many}, cancel_after_step=1)
    return Trial(settings={**base.settings, "steps": MANY_STEPS}, cancel_after_step=1)


def legal_frames(lane: Lane) -> tuple[int, ...]:
    """One count of every kind that the rule allows, the smallest above the one that `small` has."""
    rule, first = lane.constraints.frames, few_frames(lane)
    after = range(first + 1, first + 1 + 2 * rule.multiple)
    counts = [
        next((n for n in after if rule.is_legal(n) and (n - plus) % rule.multiple == 0), None) for plus in rule.plus
    ]
    return tuple(dict.fromkeys(count for count in counts if count is not None))


def illegal_frames(lane: Lane) -> int | None:
    """The first count above the smallest legal one that the rule forbids; None where it forbids none."""
    rule, first = lane.constraints.frames, few_frames(lane)
    return next((n for n in range(first + 1, first + rule.multiple + 1) if not rule.is_legal(n)), None)


def rung_trial(lane: Lane, rung: int) -> Trial:
    """A frame count that a rung of fewer frames can still lower."""
    rule = lane.constraints.frames
    more = next(n for n in range(rule.minimum + 1, rule.maximum + 1) if rule.is_legal(n))
    return Trial(settings={**own(lane).settings, "num_frames": more}, rung=rung)


def other_sizes(lane: Lane) -> tuple[Trial, Trial] | None:
    """A size one step larger both ways, and one of half a step more; None where the keyframe decides it."""
    if lane.constraints.size_follows_keyframe:
        return None
    base, step_px = small(lane), lane.constraints.size_multiple_px
    width_px, height_px = int(base.settings["width_px"]), int(base.settings["height_px"])
    legal = {**base.settings, "width_px": width_px + step_px, "height_px": height_px + step_px}
    illegal = {**base.settings, "width_px": width_px + step_px // 2}
    return Trial(settings=legal), Trial(settings=illegal)


# ---- what it says


def idle_rungs(lane: Lane) -> Iterator[Finding]:
    """A rung that differs from the one above it in nothing saves nothing: the ladder would be climbed in vain."""
    usable = usable_rungs(lane, unified=False)
    plain = call_of(lane, own(lane))
    for index, rung in enumerate(lane.ladder[1:], start=1):
        above = lane.ladder[index - 1]
        is_same_call = {**plain, **rung.call} == {**plain, **above.call}
        is_idle = index not in usable or (_without_call(lane, index) == _without_call(lane, index - 1) and is_same_call)
        if is_idle:
            fix = f"give ladder[{index}] of the lane something to do, or delete it"
            yield failed("ladder", f"the rung {rung.name!r} changes nothing against {above.name!r}", fix)


def _without_call(lane: Lane, index: int) -> tuple[Any, ...]:
    rung = lane.ladder[index]
    flags = (rung.drop_text_encoders, rung.vae_tiling, rung.layerwise_fp8, rung.group_offload)
    return (*flags, rung.num_frames_ratio, rung.size_ratio)


def clip(lane: Lane, trial: Trial, found: Outcome) -> Finding:
    """The miniature's own clip: phases, frames and size as asked, everything finite."""
    if found.failure is not None:
        return failed("clip", found.failure.line, _CLIP_FIX)
    wanted = shape_of(lane, trial)
    if found.shape != wanted:
        return failed("clip", f"came out as {found.said}, asked for {said(wanted)}", "correct [parameters] of the lane")
    if found.phases != PHASES:
        detail = f"reported the phases {', '.join(found.phases)}; wanted are {', '.join(PHASES)}"
        return failed("clip", detail, "this pipeline needs an adapter that reports them")
    return passed("clip", f"{found.said} in {found.seconds:.1f} s")


_CLIP_FIX: Final = (
    "hold [components], [call] and [miniature] of the lane against the config.json files of its repository"
)


def steps(done: Sequence[tuple[int | None, Outcome]]) -> Finding:
    """Whether progress tells every step. done: how many were asked for (None = the pipeline's own number), and what
    came of it.
    """
    for asked, found in done:
        if found.failure is not None:
            return failed("steps", f"{asked} steps: {found.failure.line}", _STEPS_FIX)
        count = len(found.steps) if asked is None else asked
        if not count or found.steps != tuple((step, count) for step in range(1, count + 1)):
            told = ", ".join(f"{step}/{of}" for step, of in found.steps) or "none"
            return failed("steps", f"asked for {count} steps, the pipeline reported {told}", _STEPS_FIX)
    return passed("steps", f"each of {' and of '.join(str(len(found.steps)) for _, found in done)} reported")


_STEPS_FIX: Final = "correct parameters.steps, or what in [call] takes its place (timesteps)"


def asked_steps(lane: Lane, trial: Trial) -> int | None:
    """How many steps the call asks for; None where neither a parameter nor a list of timesteps says it."""
    call = call_of(lane, trial)
    if "steps" in lane.parameters:
        return int(trial.settings["steps"])
    return len(call["timesteps"]) if "timesteps" in call else None


def parameters(reference: Outcome, trials: Mapping[str, Outcome], lane: Lane) -> Iterator[Finding]:
    """A parameter that changes nothing is a promise to the person that the lane does not keep."""
    idle = []
    for name, found in trials.items():
        keyword = lane.parameters[name]
        if found.failure is not None:
            yield failed("parameters", f"{name} ({keyword}): {found.failure.line}", f"correct parameters.{name}")
        elif found.digest == reference.digest:
            idle.append(f"{name} ({keyword})")
    if idle:
        fix = "map each to the keyword that has an effect, or delete it from [parameters]: what is not taken is marked"
        yield failed("parameters", f"no effect on the clip: {', '.join(idle)}", fix)
    elif all(found.failure is None for found in trials.values()):
        yield passed("parameters", f"{', '.join(trials) or 'none'} reach the clip")


def frames_rule(lane: Lane, legal: Mapping[int, Outcome], illegal: tuple[int, Outcome] | None) -> Finding:
    fix = "correct constraints.frames of the lane"
    for count, found in legal.items():
        if found.shape is None or found.shape.num_frames != count:
            return failed("frames rule", f"{count} frames are legal in the lane file: {found.said}", fix)
    said_legal = f"{', '.join(map(str, legal))} made"
    if illegal is None:
        return passed("frames rule", f"{said_legal}; no count is forbidden")
    return passed("frames rule", f"{said_legal}; {_illegal(f'{illegal[0]} frames', illegal[1])}")


def size_rule(lane: Lane, legal: tuple[Trial, Outcome], illegal: tuple[Trial, Outcome]) -> Finding:
    wanted = shape_of(lane, legal[0])
    if legal[1].shape != wanted:
        detail = f"{wanted.width_px}x{wanted.height_px} is legal in the lane file: {legal[1].said}"
        return failed("size rule", detail, "correct constraints.size_multiple_px of the lane")
    asked = f"{illegal[0].settings['width_px']}x{illegal[0].settings['height_px']}"
    return passed("size rule", f"{wanted.width_px}x{wanted.height_px} made; {_illegal(asked, illegal[1])}")


def _illegal(asked: str, found: Outcome) -> str:
    """What a pipeline does with what the lane forbids. To make it is no fault: a lane may be stricter."""
    if found.shape is not None:
        return f"the pipeline makes {asked} too"
    assert found.failure is not None
    if found.failure.failure_class == "truncated" or "returned" in found.failure.message:
        return f"{asked} silently changed ({found.failure.message})"
    return f"{asked} refused ({' '.join(found.failure.message.split())})"


def cancel(found: Outcome) -> Finding:
    fix = "this pipeline needs an adapter that ends it between two steps"
    if found.failure is None or found.failure.failure_class != "cancelled":
        return failed("cancel", f"cancelled after step 1, and it ended with {found.said}", fix)
    if len(found.steps) != 1:
        return failed("cancel", f"cancelled after step 1, and it made {len(found.steps)}", fix)
    return passed("cancel", f"ended within step 1 of {found.steps[0][1]}")


def repeat(reference: Outcome, again: Outcome) -> Finding:
    if again.failure is not None:
        return failed("repeat", f"after the cancelled attempt: {again.failure.line}", _STATE_FIX)
    if again.digest != reference.digest:
        return failed("repeat", "the same seed makes other frames after a cancelled attempt", _STATE_FIX)
    return passed("repeat", "the same seed makes the same frames after a cancelled attempt")


_STATE_FIX: Final = "this pipeline keeps state from call to call: pass what resets it in [call], or write an adapter"


def rung(lane: Lane, trial: Trial, found: Outcome, *, unified: bool = False) -> Finding:
    step = lane.ladder[trial.rung]
    check = f"rung {step.name}" + (" unified" if unified else "")
    if found.failure is not None:
        return failed(check, found.failure.line, f"take what fails from ladder[{trial.rung}] of the lane")
    wanted = shape_of(lane, trial)
    if found.shape != wanted:
        return failed(check, f"came out as {found.said}, asked for {said(wanted)}", f"correct ladder[{trial.rung}]")
    return passed(check, f"{found.said} in {found.seconds:.1f} s")


def said(shape: Shape) -> str:
    return f"{shape.num_frames} frames of {shape.width_px}x{shape.height_px}"


def signatures(read: Mapping[str, Method], seen: Mapping[str, Any]) -> Iterator[str]:
    """Differences between what `ast` reads of a class and what `inspect` sees, as sentences. Both by method name."""
    for name, method in read.items():
        told = seen[name]
        as_read = [[item.name, item.required] for item in method.parameters]
        if as_read != told["parameters"] or method.takes_any != told["takes_any"]:
            odd = sorted({str(item) for item in as_read} ^ {str(item) for item in told["parameters"]})
            yield f"__{name}__ is read differently from what it is: {', '.join(odd) or 'its **kwargs'}"


def counts(lane: Lane, found: Mapping[str, int]) -> Finding:
    """Parameters of every component at full size."""
    wanted = {name: part.params for name, part in lane.components.items() if part.params is not None}
    off = [f"{name} {found.get(name)}, not {count}" for name, count in wanted.items() if found.get(name) != count]
    off += [f"{name} {count}, and the lane says none" for name, count in found.items() if name not in wanted]
    if off:
        fix = "correct components.*.config or components.*.params: whichever is not as published"
        return failed("parameter counts", f"[components] at full size: {'; '.join(off)}", fix)
    return passed("parameter counts", f"{sum(wanted.values()) / 1e9:.2f} B in {len(wanted)} components")


def cost_counted(lane: Lane, counted: Iterable[tuple[Shape, float]]) -> Finding:
    """What `[cost]` computes against what was counted. counted: (shape, TFLOP of one call of the denoiser)."""
    if lane.cost is None:
        return failed("cost", "the lane has no [cost]", _COST_FIX)
    guided = cost.is_guided(lane.cost, lane.pipeline_call("hub", {**lane.defaults, "prompt": PROMPT}))
    off = []
    for shape, tflop in counted:
        computed = cost.forward_tflop(lane.cost, shape, guided=guided)
        if abs(computed / tflop - 1) > COST_TOLERANCE:
            off.append(f"{said(shape)} take {tflop:.4g} TFLOP a forward, [cost] says {computed:.4g}")
    return failed("cost", "; ".join(off), _COST_FIX) if off else passed("cost", "as counted at full size")


_COST_FIX: Final = "run `python -m screentest_runner.counting` on the lane file in its model env"
