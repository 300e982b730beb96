"""What the end of an attempt means: a reply, an exit, a breach or a probe becomes an Outcome. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from screentest.records import ArtifactKind, ClipFacts, FailureClass, JobSpec, Outcome

# The pipeline and its memory are as good as before: only the request was wrong.
_LEAVES_RUNNER_WARM: Final = frozenset(
    {FailureClass.BAD_KWARGS, FailureClass.PREFLIGHT_REFUSED, FailureClass.CONDITIONING}
)

# One line a person can act on. What refuses a job, or loses it to the machine, says its own; a cancel needs none.
_FIXES: Final = {
    FailureClass.OOM_LOAD: "retry on a lower rung or a card with more memory; stop what else uses the GPU",
    FailureClass.OOM_ENCODE: "shorten the prompt, or retry on a lower rung",
    FailureClass.OOM_DENOISE: "ask for fewer frames or a smaller size, or retry on a lower rung",
    FailureClass.OOM_DECODE: "ask for fewer frames or a smaller size, or retry on a lower rung",
    FailureClass.HOST_OOM: "free host memory or raise the container's memory limit, then retry",
    FailureClass.TIMEOUT: "ask for fewer frames or steps, or retry: a retry has the lane file's limits, raise those",
    FailureClass.STALLED: "read the log: it ends with the stack of the silent process; then retry",
    FailureClass.CRASHED: "read the log of the job; a crash in a driver or library needs its update",
    FailureClass.BAD_KWARGS: "correct [parameters] or [call] in the lane file",
    FailureClass.LAYOUT: "fetch the weights again: files are missing or of another pipeline",
    FailureClass.CHANNELS: "use a keyframe in RGB and weights of the lane's own task",
    FailureClass.CONDITIONING: (
        "of a tokenizer or text encoder, mend what the cause names in the lane file or fetch the weights again; of a "
        "keyframe, use another one or another size"
    ),
    FailureClass.NAN: "use float32 for the VAE or another dtype in the lane file, then retry",
    FailureClass.TRUNCATED: "ask for a legal number of frames; the pipeline returned another count",
    FailureClass.UNDECODABLE: "retry; if it comes again, check the disk below the state directory",
    FailureClass.ENCODE: "read the log of the job; check the free space of the scratch disk",
    FailureClass.UPLOAD: "start the depot and retry; what was made is kept in the worker's spool folder 'undelivered'",
    FailureClass.INFRASTRUCTURE: "read the worker's log; the scheduler tries it again while its budget lasts",
    FailureClass.UNCLASSIFIED: "read the log of the job: it ends with the exception; then retry",
    FailureClass.GPU_FAULT: "read the kernel log for Xid errors; reset the GPU before the next job",
}


class Limit(StrEnum):
    """Which limit of JobSpec.limits was passed."""

    LOAD = "load_s"
    STEP_STALL = "step_stall_s"
    ATTEMPT = "attempt_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How the runner process died. ``oom_kills``: kernel OOM kills in our cgroup meanwhile, None = not counted."""

    returncode: int
    oom_kills: int | None


def keeps_runner(failure_class: FailureClass | None) -> bool:
    """Whether the runner may stay warm after this ending; after any other failure its state is not to be trusted.

    A cancelled attempt does not say by itself: a runner that gave it up when it was told to stays too.
    """
    return failure_class is None or failure_class in _LEAVES_RUNNER_WARM


def failed(failure_class: FailureClass, cause: str, phase: str, *, fix: str = "") -> Outcome:
    """A failure of the job itself."""
    return Outcome(
        failure_class=failure_class,
        cause=one_line(cause),
        fix=fix or _FIXES.get(failure_class, ""),
        phase=phase,
        infrastructure=failure_class is FailureClass.INFRASTRUCTURE,
    )


def infrastructure(cause: str, phase: str, fix: str = "") -> Outcome:
    """Lost to the machine, not to the job: the scheduler may try again without blaming the job."""
    return failed(FailureClass.INFRASTRUCTURE, cause, phase, fix=fix)


def from_reply(failure_class: str, message: str, phase: str) -> Outcome:
    """The runner's own Failed. A class that the contract does not know is unclassified, never a guess."""
    known = {item.value: item for item in FailureClass}
    return failed(known.get(failure_class, FailureClass.UNCLASSIFIED), message, phase)


def from_exit(exit_: Exit, phase: str) -> Outcome:
    """The runner died without a word."""
    if exit_.returncode == -9 and exit_.oom_kills:
        cause = f"the kernel killed the runner for want of host memory while {phase}"
        return failed(FailureClass.HOST_OOM, cause, phase)
    how = f"by signal {-exit_.returncode}" if exit_.returncode < 0 else f"with status {exit_.returncode}"
    return failed(FailureClass.CRASHED, f"the runner died {how} while {phase}", phase)


def from_breach(limit: Limit, seconds: float, phase: str) -> Outcome:
    """A limit of the lane was passed. Silence is a stall; a load or an attempt that takes too long is a timeout."""
    if limit is Limit.STEP_STALL:
        return failed(FailureClass.STALLED, f"no step or phase for {seconds:g} s while {phase}", phase)
    what = "the load took" if limit is Limit.LOAD else "the attempt took"
    return failed(FailureClass.TIMEOUT, f"{what} more than {seconds:g} s; it was {phase}", phase)


def gpu_fault(cause: str, phase: str) -> Outcome:
    """The device failed below the attempt: lost to the machine. The scheduler keeps the device until a person looked.

    What a CUDA call alone says is no such ending: an illegal access of the model's own reads the same.
    """
    fix = "read the kernel log, reset the GPU, then `screentest undrain`; the job is tried again by itself"
    return replace(failed(FailureClass.GPU_FAULT, cause, phase, fix=fix), infrastructure=True)


def cancelled(phase: str) -> Outcome:
    return failed(FailureClass.CANCELLED, f"cancelled while {phase}" if phase else "cancelled", phase)


def as_cancelled(outcome: Outcome) -> Outcome:
    """The same attempt, ended by a person: what it measured stays, what it made does not count."""
    ending = cancelled(outcome.phase)
    made = (ArtifactKind.CLIP, ArtifactKind.JUDGEMENT)
    kept = tuple(artifact for artifact in outcome.artifacts if artifact.kind not in made)
    return replace(
        outcome,
        failure_class=ending.failure_class,
        cause=ending.cause,
        fix="",
        clip=None,
        judgement=None,
        artifacts=kept,
        infrastructure=False,
    )


def not_proven(device: str, seconds: float, why: str) -> Outcome:
    """The device could not be proven ours alone in time; ``why`` says who holds it."""
    cause = f"{device} was not proven clean within {seconds:g} s: {why}"
    return infrastructure(cause, "preparing", f"end what holds {device}, then undrain it: screentest gpus")


def lost(phase: str | None) -> Outcome:
    """A started attempt came again and nothing of it is left."""
    during = f"during {phase}" if phase else "in an unknown phase"
    return infrastructure(f"worker died {during}", phase or "")


def from_probe(spec: JobSpec, facts: ClipFacts) -> Outcome | None:
    """None when the clip is what the job asked for; flags (black, flat, noise, frozen) are no failure."""
    if facts.frames != spec.num_frames:
        cause = f"the clip holds {facts.frames} frames, asked for {spec.num_frames}"
        return failed(FailureClass.TRUNCATED, cause, "encoding")
    found = (facts.codec, facts.pixel_format, facts.width_px, facts.height_px)
    wanted = ("h264", "yuv420p", spec.width_px, spec.height_px)
    if found != wanted:
        return failed(FailureClass.ENCODE, f"the clip is {_form(*found)}, asked for {_form(*wanted)}", "encoding")
    if abs(facts.fps - spec.fps) > 0.01 * spec.fps:
        return failed(FailureClass.ENCODE, f"the clip runs at {facts.fps:g} fps, asked for {spec.fps:g}", "encoding")
    return None


def _form(codec: str, pixel_format: str, width_px: int, height_px: int) -> str:
    return f"{codec} {pixel_format} {width_px}x{height_px}"


def one_line(text: str, limit: int = 400) -> str:
    """The text without line breaks, cut to a length that a table row bears."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
