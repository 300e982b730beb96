"""What an attempt holds of the device's memory at each rung, which rung fits, and the smallest card that does. Pure.

A phase holds weights, which the rung decides, and activations, which the clip's shape decides. A lane measured at one
rung and shape thus says what it holds at others; where neither a measurement nor this arithmetic reaches, it is None.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from screentest import cost
from screentest.lanes import Component, Lane, Rung, shape_at, usable_rungs
from screentest.measured import Experience, Measured, Shape

GIB: Final = 2**30
# What CUDA takes beside what torch holds: about half a GiB in every rehearsal on an H200, more with more kernels.
CONTEXT_BYTES: Final = int(0.6 * GIB)
CARDS_GIB: Final = (8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 96, 128, 141, 192)

ENCODING, DENOISING, DECODING = PHASES = ("encoding_prompt", "denoising", "decoding")
LOADING: Final = "loading"
DENOISERS: Final = ("transformer", "transformer_2", "unet")
BYTES_OF: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT_RGB_BYTES: Final = 12  # of one pixel of a decoded clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """likely_bytes: what torch will hold. least_bytes: the least that is known to suffice. tensor_bytes: what tensors
    alone take: with less it cannot run. basis: measured at this very rung and shape, or computed, and from what.
    """

    likely_bytes: int
    least_bytes: int
    tensor_bytes: int
    basis: str


def peak(
    lane: Lane, rung: int, shape: Shape, measured: Measured, *, unified: bool = False, torch_bytes: int | None = None
) -> Peak | None:
    """The peak of an attempt that is asked for `shape`. torch_bytes: what torch may hold, where that is known: with
    more it keeps more in reserve. None: nothing allows a number.
    """
    made = at_rung(lane, rung, shape)
    clips = [clip for clip in measured.clips if clip.lane_id == lane.id and clip.held_bytes]
    wanted = _placement(lane.ladder[rung], unified)
    same = [clip for clip in clips if clip.shape == made and _is_same(lane, clip, wanted, unified)]
    if same:
        return _measured(same, torch_bytes)
    return _computed(lane, lane.ladder[rung], made, clips, unified)


def peak_bytes(lane: Lane, rung: int, shape: Shape, measured: Measured, *, unified: bool = False) -> int | None:
    """The least that is known, or computed, to suffice."""
    found = peak(lane, rung, shape, measured, unified=unified)
    return None if found is None else found.least_bytes


def at_rung(lane: Lane, rung: int, shape: Shape) -> Shape:
    """What a rung makes of the asked shape."""
    width_px, height_px, num_frames = shape_at(lane, rung, shape.width_px, shape.height_px, shape.num_frames)
    return Shape(width_px=width_px, height_px=height_px, num_frames=num_frames)


def torch_may_hold(memory_bytes: int, memory_cap_gib: float | None = None) -> int:
    """Of memory that is free before the load; a cap is torch's own."""
    free = memory_bytes - CONTEXT_BYTES
    return free if memory_cap_gib is None else min(free, int(memory_cap_gib * GIB))


def first_rung(
    lane: Lane,
    shape: Shape,
    memory_bytes: int,
    measured: Measured,
    *,
    unified: bool = False,
    memory_cap_gib: float | None = None,
) -> int | None:
    """Where an attempt can begin with so much memory; None = no rung fits.

    That is the first that fits and keeps the picture, an unknown peak taken as one that does where the weights do;
    failing that, the first whose tensors alone would fit; failing that, any that fits.
    """
    torch_bytes = torch_may_hold(memory_bytes, memory_cap_gib)
    rungs = usable_rungs(lane, unified)
    peaks = {rung: peak(lane, rung, shape, measured, unified=unified) for rung in rungs}
    fitting = [rung for rung in rungs if _fits(lane, rung, peaks[rung], measured, unified, torch_bytes)]
    tight = [rung for rung in rungs if (found := peaks[rung]) is not None and found.tensor_bytes <= torch_bytes]
    # torch gives back what it merely holds: rather try a tight rung than make another picture
    candidates = [*(rung for rung in fitting if not lane.ladder[rung].changes_picture), *tight, *fitting]
    return next(iter(candidates), None)


def nearest_shape_that_fits(
    lane: Lane,
    shape: Shape,
    memory_bytes: int,
    measured: Measured,
    *,
    unified: bool = False,
    memory_cap_gib: float | None = None,
) -> Shape | None:
    """The largest legal shape, up to `shape`, that fits at a rung which does not change the picture: fewer frames
    first, then also a smaller size of the same proportions. None = none does.
    """
    torch_bytes = torch_may_hold(memory_bytes, memory_cap_gib)
    neutral = [rung for rung in usable_rungs(lane, unified) if not lane.ladder[rung].changes_picture]

    def fits(candidate: Shape) -> bool:
        peaks = ((rung, peak(lane, rung, candidate, measured, unified=unified)) for rung in neutral)
        return any(_fits(lane, rung, found, measured, unified, torch_bytes) for rung, found in peaks)

    counts = [frames for frames in range(1, shape.num_frames + 1) if lane.constraints.frames.is_legal(frames)]
    for size in _sizes(lane, shape):
        candidates = [replace(size, num_frames=frames) for frames in counts]
        if candidates and fits(candidates[0]):
            return candidates[bisect_left(candidates, True, key=lambda candidate: not fits(candidate)) - 1]
    return None


def is_placed_as(lane: Lane, clip: Experience, rung: int) -> bool:
    """Whether the clip's parts lay where they lie at a rung; a rung that only changes the picture is as its base."""
    of = _rung_of(lane, clip)
    return of is not None and _placement(of, clip.is_unified) == _placement(lane.ladder[rung], clip.is_unified)


def card_gib(peak_bytes: int) -> int | None:
    """The smallest usual card, in GiB, that holds what torch holds and CUDA beside it; None = none is so large."""
    return next((card for card in CARDS_GIB if card * GIB >= peak_bytes + CONTEXT_BYTES), None)


def smallest_card_gib(lane: Lane, shape: Shape, measured: Measured) -> int | None:
    """The smallest card that makes this very picture at some rung; None = not known of any rung, or none."""
    neutral = [rung for rung in usable_rungs(lane, unified=False) if not lane.ladder[rung].changes_picture]
    peaks = [peak_bytes(lane, rung, shape, measured) for rung in neutral]
    return min((card for found in peaks if found is not None and (card := card_gib(found)) is not None), default=None)


def _fits(lane: Lane, rung: int, found: Peak | None, measured: Measured, unified: bool, torch_bytes: int) -> bool:
    """An unknown peak fits where the weights do."""
    if found is not None:
        return found.least_bytes <= torch_bytes
    weights = _weights(lane, [clip for clip in measured.clips if clip.lane_id == lane.id])
    return weights is None or weights.most(lane.ladder[rung], unified) <= torch_bytes


# --- smaller shapes ---------------------------------------------------------------------------------------------------


def _sizes(lane: Lane, shape: Shape) -> Iterator[Shape]:
    """The asked size, then each smaller legal one of about its proportions."""
    yield shape
    if lane.constraints.size_follows_keyframe:
        return
    step_px = lane.constraints.size_multiple_px
    for width_px in range(shape.width_px - step_px, shape.width_px // 4, -step_px):
        yield replace(
            shape,
            width_px=width_px,
            height_px=lane.constraints.nearest_px(shape.height_px * width_px // shape.width_px),
        )


# --- measured peaks ---------------------------------------------------------------------------------------------------


def _placement(rung: Rung, unified: bool) -> Rung:
    """What of a rung decides where things lie; equal ones hold the same for the same shape."""
    offload = None if unified else rung.group_offload
    return replace(rung, name="", group_offload=offload, num_frames_ratio=1.0, size_ratio=1.0)


def _rung_of(lane: Lane, clip: Experience) -> Rung | None:
    """None where the ladder no longer has it."""
    return next((rung for rung in lane.ladder if rung.name == clip.rung), None)


def _is_same(lane: Lane, clip: Experience, wanted: Rung, unified: bool) -> bool:
    """Whether the clip held what an attempt so placed holds: what leaves it goes elsewhere on unified memory."""
    rung = _rung_of(lane, clip)
    if rung is None or _placement(rung, clip.is_unified) != wanted:
        return False
    return clip.is_unified == unified or not (rung.drop_text_encoders or rung.group_offload)


def _measured(clips: list[Experience], torch_bytes: int | None) -> Peak:
    held = {id(clip): max(clip.held_bytes.values()) for clip in clips}
    least = min(held.values())
    likely = _with_as_much(clips, torch_bytes)
    return Peak(
        likely_bytes=least if likely is None else held[id(likely)],
        least_bytes=least,
        tensor_bytes=min(max((clip.tensor_bytes or clip.held_bytes).values()) for clip in clips),
        basis=f"measured on {clips[-1].gpu}",
    )


def _with_as_much(clips: list[Experience], torch_bytes: int | None) -> Experience | None:
    """The clip that was allowed most, but not more than this; of those with all of a larger device one that took no
    more.
    """
    if torch_bytes is None:
        return max(clips, key=_allowed_bytes)
    capped = [clip for clip in clips if _allowed_bytes(clip) <= torch_bytes]
    small = [clip for clip in clips if max(clip.held_bytes.values()) <= torch_bytes]
    if capped:
        return max(capped, key=_allowed_bytes)
    return max(small, key=lambda clip: max(clip.held_bytes.values()), default=None)


def _allowed_bytes(clip: Experience) -> float:
    return float("inf") if clip.memory_cap_gib is None else clip.memory_cap_gib * GIB


# --- computed peaks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """Bytes of the pipeline's parts as the lane stores them; one_denoiser: the larger where there are two."""

    denoisers: int
    one_denoiser: int
    encoders: int
    rest: int

    def most(self, rung: Rung, unified: bool) -> int:
        """On the device at a time."""
        return max(self.on_device(rung, phase, unified) for phase in PHASES)

    def on_device(self, rung: Rung, phase: str, unified: bool) -> int:
        """While a phase runs at a rung."""
        share = 0.5 if rung.layerwise_fp8 else 1.0
        denoisers, one = int(self.denoisers * share), int(self.one_denoiser * share)
        if rung.group_offload and not unified:
            return self.rest
        if not rung.drop_text_encoders:
            return denoisers + self.encoders + self.rest
        if unified:
            return denoisers + self.rest + (self.encoders if phase == ENCODING else 0)
        return {ENCODING: self.encoders + self.rest, DENOISING: one, DECODING: self.rest}[phase]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A clip that others are computed from, with its rung."""

    clip: Experience
    rung: Rung

    @property
    def bytes_by_phase(self) -> dict[str, int]:
        return dict(self.clip.tensor_bytes or self.clip.held_bytes)

    @property
    def slack_bytes(self) -> int:
        """What torch held over its tensors."""
        return max(self.clip.held_bytes.values()) - max(self.bytes_by_phase.values())


def _computed(lane: Lane, rung: Rung, shape: Shape, clips: list[Experience], unified: bool) -> Peak | None:
    sources = _sources(lane, rung, clips, unified)
    weights = _weights(lane, clips)
    if not sources or weights is None:
        return None
    phases = [_phase(lane, rung, phase, shape, sources, weights, unified) for phase in PHASES]
    known = [found for found in phases if found is not None]
    if len(known) < len(phases):
        return None
    nearest = min(sources, key=lambda source: source.slack_bytes)
    slack = _slack_share(lane, nearest, weights)
    held = max(found.weights_bytes + int(found.activations_bytes * (1 + slack)) for found in known)
    return Peak(
        likely_bytes=held,
        least_bytes=held,
        tensor_bytes=max(found.weights_bytes + found.activations_bytes for found in known),
        basis=f"computed from rung {nearest.clip.rung!r} measured on {nearest.clip.gpu}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phase:
    """What tensors take in a phase."""

    weights_bytes: int
    activations_bytes: int


def _phase(
    lane: Lane, rung: Rung, phase: str, shape: Shape, sources: list[_Source], weights: _Weights, unified: bool
) -> _Phase | None:
    """None where no source knows it."""
    found = [
        activations
        for source in sources
        if _is_alike(lane, source.rung, rung, phase)
        and (activations := _activations(lane, source, weights, phase, shape)) is not None
    ]
    if not found:
        return None
    # a streamed rung also holds what is on its way, so the smaller one is nearer to what the phase itself needs
    return _Phase(weights_bytes=weights.on_device(rung, phase, unified), activations_bytes=min(found))


def _slack_share(lane: Lane, source: _Source, weights: _Weights) -> float:
    """What torch held over the tensors, as a share of the activations: they come and go and leave gaps, weights lie."""
    of_phases = [_activations(lane, source, weights, phase, source.clip.shape) for phase in PHASES]
    return source.slack_bytes / max(1, *(found for found in of_phases if found is not None))


def _is_alike(lane: Lane, rung: Rung, other: Rung, phase: str) -> bool:
    """Whether a phase computes the same at both: the VAE alone may be tiled, and it decodes, and encodes pictures."""
    is_without_vae = phase == DENOISING or (phase == ENCODING and lane.task == "t2v")
    return is_without_vae or _is_tiled(lane, rung) == _is_tiled(lane, other)


def _sources(lane: Lane, rung: Rung, clips: list[Experience], unified: bool) -> list[_Source]:
    """Clips at the same placement where there are any; else all that say something about it. What a streamed rung holds
    at least is only known from streamed ones.
    """
    found = [_Source(clip=clip, rung=of) for clip in clips if (of := _rung_of(lane, clip)) is not None]
    found = [source for source in found if source.clip.tensor_bytes] or found  # else slack counts as activations
    same = [source for source in found if _is_same(lane, source.clip, _placement(rung, unified), unified)]
    if same or (rung.group_offload and not unified):
        return same or [source for source in found if source.rung.group_offload and not source.clip.is_unified]
    return found


def _activations(lane: Lane, source: _Source, weights: _Weights, phase: str, shape: Shape) -> int | None:
    """What the phase holds over its weights, at another shape. None where the clip does not know the phase."""
    held = source.bytes_by_phase.get(phase)
    if held is None:
        return None
    over = max(held - weights.on_device(source.rung, phase, source.clip.is_unified), 0)
    ratio = shape.pixels / source.clip.shape.pixels
    match phase:
        case "denoising":
            return int(over * _tokens_ratio(lane, source.clip.shape, shape))
        case "encoding_prompt" if lane.task == "t2v":
            return over  # a text is as long as ever
        case _ if _is_tiled(lane, source.rung):
            # of a tile as much as ever; what grows is the clip that the tiles make up
            of_clip = min(over, FLOAT_RGB_BYTES * source.clip.shape.pixels)
            return over - of_clip + int(of_clip * ratio)
        case _:
            return int(over * ratio)


def _tokens_ratio(lane: Lane, measured: Shape, wanted: Shape) -> float:
    if lane.cost is None:
        return wanted.pixels / measured.pixels
    return cost.tokens(lane.cost, wanted) / cost.tokens(lane.cost, measured)


def _is_tiled(lane: Lane, rung: Rung) -> bool:
    """Streaming has always tiled."""
    return rung.vae_tiling or rung.group_offload is not None or "vae.enable_tiling" in lane.pipeline.before_call


def _weights(lane: Lane, clips: Iterable[Experience]) -> _Weights | None:
    """None where the lane does not count its parameters."""
    sizes = {name: _component_bytes(lane, name, part) for name, part in lane.components.items() if part.params}
    denoisers = [size for name, size in sizes.items() if name in DENOISERS]
    if not denoisers:
        return None
    encoders = sum(size for name, size in sizes.items() if "encoder" in name)
    rest = sum(sizes.values()) - sum(denoisers) - encoders
    loaded = _loaded_bytes(lane, clips)
    if loaded is not None:
        # params counts T5's two names for one embedding twice; a load has measured what it really takes
        encoders = min(encoders, max(loaded - sum(denoisers) - rest, 0))
    return _Weights(denoisers=sum(denoisers), one_denoiser=max(denoisers), encoders=encoders, rest=rest)


def _component_bytes(lane: Lane, name: str, part: Component) -> int:
    dtypes = lane.pipeline.dtype
    return (part.params or 0) * BYTES_OF[dtypes.get(name, dtypes["default"])]


def _loaded_bytes(lane: Lane, clips: Iterable[Experience]) -> int | None:
    """All weights, as a clip whose rung leaves them where and as they are has measured them."""
    for clip in clips:
        rung = _rung_of(lane, clip)
        if rung is not None and LOADING in clip.tensor_bytes and _placement(rung, unified=False) == Rung(name=""):
            return clip.tensor_bytes[LOADING]
    return None
