"""The ordinary diffusers pipeline: one from_pretrained, one call. Odd ones are adapters of their own."""

from __future__ import annotations

import inspect
import json
import operator
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, assert_never

from screentest_runner import conditioning, full_random, gates, miniature
from screentest_runner.adapters.device_memory import PhaseMemory, cap_memory
from screentest_runner.adapters.placement import Placement, denoiser_names
from screentest_runner.failures import AttemptFailure
from screentest_runner.frames import Clip, check_shape
from screentest_runner.keyframe import read_keyframe
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import FailureClass, Generate, Load, Phase

PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "pillow")
UINT8_CHUNK_FRAMES = 16  # bounds the float32 copy on the device; one frame at a time costs a launch each


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A pipeline on its way to the device.

    reload: makes one of its components anew, by name. build_s: seconds spent making the weights, None when they were
    there.
    """

    pipe: Any
    reload: Callable[[str], Any]
    build_s: float | None = None


class DiffusersAdapter:
    """Holds one pipeline. Its components report into the progress of the attempt that runs."""

    def __init__(self, lane: dict[str, Any]) -> None:
        self.lane = lane
        self._pipe: Any = None
        self._is_miniature = False
        self._progress: AttemptProgress | None = None
        self._decoded = _FiniteCount()
        self._memory = PhaseMemory(is_known=False)
        self._placement: Placement | None = None

    # --- Prepare

    def prepare(self) -> dict[str, str]:
        """Imports the pipeline's and the components' modules only: both libraries load the rest when asked."""
        import torch
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        self.pipeline_class()
        for name, part in self.lane["components"].items():
            miniature.component_class(part, name, self.lane["id"])
        versions = {name: metadata.version(name) for name in PACKAGES}
        if torch.version.cuda is not None:
            versions["cuda"] = torch.version.cuda
        return {"python": platform.python_version(), **versions}

    def pipeline_class(self) -> Any:
        """Raises AttemptFailure(layout) when this diffusers has no such class."""
        name = self.lane["pipeline"]["class"]
        found = getattr(import_module("diffusers"), name, None)
        if found is None:
            version = metadata.version("diffusers")
            raise AttemptFailure(FailureClass.LAYOUT, f"diffusers {version} has no {name!r}")
        return found

    # --- Load

    def load(self, load: Load, device: str) -> float | None:
        import torch

        self._memory = PhaseMemory(is_known=device != "cpu")
        if load.memory_cap_gib is not None and device != "cpu":
            cap_memory(load.memory_cap_gib)
        if load.weights == "miniature":
            torch.set_num_threads(1)  # on a cpu, sharing tiny layers out costs ten times what computing them does
        placement = Placement(load.rung, torch.device(device), is_unified=load.unified_memory)
        weights = self._weights(load, placement, torch.device(device))
        pipe = weights.pipe
        pipe.set_progress_bar_config(disable=True)
        for denoiser in denoiser_names(pipe):
            gates.check_channels(pipe, denoiser, self.lane["components"][denoiser]["config"].get("in_channels"))
        gates.check_init(pipe, self.lane["pipeline"].get("init", {}))
        gates.check_text_encoders(pipe)
        if device != "cpu":
            gates.check_conv3d(device)
        placement.place(pipe, self.dtype_of, weights.reload)
        for path in self.lane["pipeline"].get("before_call", []):
            _method(pipe, path)()
        conditioning.watch_text_encoders(pipe)
        self._watch(pipe, placement)
        self._pipe, self._placement, self._is_miniature = pipe, placement, load.weights == "miniature"
        self._memory.phase_ended(Phase.LOADING)
        return weights.build_s

    def _weights(self, load: Load, placement: Placement, device: Any) -> Weights:
        match load.weights:
            case "hub":
                return self._of_folder(self._downloaded(load), build_s=None)
            case "miniature":
                folder = miniature.cached(self.lane, Path(load.cache_dir), self.prepare())
                began = time.perf_counter()
                is_new = not folder.is_dir()
                if is_new:
                    miniature.build(self.lane, folder)
                return self._of_folder(folder, build_s=time.perf_counter() - began if is_new else None)
            case "full-random":
                return self._full_random(placement, device)
            case other:
                assert_never(other)

    def _of_folder(self, folder: Path, *, build_s: float | None) -> Weights:
        pipe = self.from_folder(folder)
        # full-random weights have no such gate: their tokenizers are made on the spot, not read from a file
        gates.check_tokenizers(pipe, folder)
        return Weights(pipe=pipe, reload=partial(self._component, folder), build_s=build_s)

    def _full_random(self, placement: Placement, device: Any) -> Weights:
        began = time.perf_counter()
        maker = full_random.Maker(
            self.lane, self.pipeline_class(), dtype_of=self.dtype_of, home_of=placement.home, device=device
        )
        return Weights(pipe=maker.pipeline(), reload=maker.component, build_s=time.perf_counter() - began)

    def _downloaded(self, load: Load) -> Path:
        if load.weights_dir is None or not Path(load.weights_dir).is_dir():
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"no folder {load.weights_dir!r} with the weights of {self.lane['model']['repo']}; run "
                f"`screentest models pull {self.lane['id']}`",
            )
        return Path(load.weights_dir)

    def from_folder(self, folder: Path) -> Any:
        """The pipeline on the host: from_pretrained, offline and of safetensors only."""
        gates.check_folder(folder, self.lane["id"])
        explicit = self._explicit_parts(folder)
        # from_pretrained refuses a tokenizer where model_index.json names a processor
        later = {name: part for name, part in explicit.items() if self._stands_for_processor(name)}
        given = explicit | dict.fromkeys([*self._unnamed_parts(folder), *later])
        pipe = self.pipeline_class().from_pretrained(
            folder,
            dtype=self.dtypes(),
            variant=self.lane["model"].get("variant"),
            use_safetensors=True,
            local_files_only=True,
            **given,
        )
        pipe.register_modules(**later)
        return pipe

    def _component(self, folder: Path, name: str) -> Any:
        """One component with its weights, as `from_folder` reads it."""
        variant = self.lane["model"].get("variant")
        has_variant = any((folder / name).glob(f"*.{variant}.safetensors"))
        kind = miniature.component_class(self.lane["components"][name], name, self.lane["id"])
        return kind.from_pretrained(
            folder / name,
            dtype=self.dtype_of(name),
            variant=variant if has_variant else None,
            use_safetensors=True,
            local_files_only=True,
        )

    def dtypes(self) -> dict[str, Any]:
        """Component name, or `default`, to torch dtype."""
        import torch

        return {name: getattr(torch, dtype) for name, dtype in self.lane["pipeline"]["dtype"].items()}

    def dtype_of(self, component: str) -> Any:
        dtypes = self.dtypes()
        return dtypes.get(component, dtypes["default"])

    def _stands_for_processor(self, name: str) -> bool:
        """Whether the tokenizer of a processor is used, because the pipeline gives it text alone."""
        part = self.lane["components"][name]
        return part["index_class"].endswith("Processor") and "Tokenizer" in part["class"]

    def _unnamed_parts(self, folder: Path) -> set[str]:
        """The components of model_index.json that the lane does not name: they stay on the disk (LTX-2's prompt
        enhancer needs libraries of its own).
        """
        index = json.loads((folder / "model_index.json").read_text())
        found = {name for name, value in index.items() if isinstance(value, list) and value[1] is not None}
        return found - self.lane["components"].keys()

    def _explicit_parts(self, folder: Path) -> dict[str, Any]:
        """The components whose class in model_index.json is not the one to use."""
        return {
            name: miniature.component_class(part, name, self.lane["id"]).from_pretrained(
                folder / name, local_files_only=True
            )
            for name, part in self.lane["components"].items()
            if "index_class" in part
        }

    # --- Generate

    def generate(self, generate: Generate, progress: AttemptProgress) -> Clip:
        self._memory.reset()
        progress.on_phase_end(self._memory.phase_ended)
        self._progress, self._decoded = progress, _FiniteCount()
        try:
            video = self._call(generate, progress)
        finally:
            self._progress = None
            if self._placement is not None:
                self._placement.attempt_ended()
        progress.enter(Phase.DECODING)
        fraction = self._decoded.fraction()
        if fraction != 1.0:
            raise AttemptFailure(
                FailureClass.NAN, f"{1 - fraction:.2%} of the decoded values are not finite; the clip would be black"
            )
        clip = Clip(pixels=to_uint8(video), finite_fraction=fraction)
        width_px, height_px = self.size_px(generate)  # the call names no size where the keyframe decides it
        check_shape(clip, frames=None, height_px=height_px, width_px=width_px)
        return clip

    def _call(self, generate: Generate, progress: AttemptProgress) -> Any:
        """The pipeline's video, (T, C, H, W) floats in 0..1 on the device."""
        arguments = self.arguments(generate)
        with set_attributes(self._pipe, attributes_of(generate.call)):
            return self._video(arguments, progress)

    def _video(self, arguments: dict[str, Any], progress: AttemptProgress) -> Any:
        if "callback_on_step_end" in inspect.signature(self._pipe.__call__).parameters:
            arguments["callback_on_step_end"] = _step_callback(progress)
            return self._pipe(**arguments).frames[0]
        with _StepsOfScheduler(self._pipe.scheduler, progress):
            return self._pipe(**arguments).frames[0]

    def arguments(self, generate: Generate) -> dict[str, Any]:
        """The pipeline's keyword arguments, without the callback and without what is set as an attribute.

        Raises AttemptFailure(bad_kwargs).
        """
        import torch

        gates.check_call(generate.call, self.lane.get("call", {}), self.lane["id"])
        taken = inspect.signature(self._pipe.__call__).parameters
        arguments = {keyword: value for keyword, value in generate.call.items() if "." not in keyword}
        if generate.keyframe_path is not None:
            keyword = self.lane["parameters"]["keyframe"]
            width_px, height_px = self.size_px(generate)
            arguments[keyword] = read_keyframe(Path(generate.keyframe_path), width_px, height_px)
        if unknown := sorted(arguments.keys() - taken.keys()):
            raise AttemptFailure(
                FailureClass.BAD_KWARGS,
                f"{type(self._pipe).__name__} takes no {', '.join(unknown)}; change [parameters]",
            )
        return arguments | {"generator": torch.Generator("cpu").manual_seed(generate.seed), "output_type": "pt"}

    def size_px(self, generate: Generate) -> tuple[int, int]:
        """Width and height of the clip: what the call says, or the lane's own where the keyframe decides it."""
        smaller = self.lane["miniature"]["defaults"] if self._is_miniature else {}
        own = {**self.lane["defaults"], **smaller}
        keywords = self.lane["parameters"]
        width_px, height_px = (
            generate.call[keywords[name]] if name in keywords else own[name] for name in ("width_px", "height_px")
        )
        return int(width_px), int(height_px)

    def _watch(self, pipe: Any, placement: Placement) -> None:
        """Tell the running attempt when the first denoising begins, and look at everything the VAE decodes."""

        def before_denoiser(*_: Any) -> None:
            if self._progress is not None:
                self._progress.enter(Phase.DENOISING)
            placement.denoising_begins()

        for name in denoiser_names(pipe):
            getattr(pipe, name).register_forward_pre_hook(before_denoiser)
        decode = pipe.vae.decode

        def watched_decode(*arguments: Any, **keywords: Any) -> Any:
            decoded = decode(*arguments, **keywords)
            # here, because the pipeline then clamps to 0..1, which turns infinity into white
            self._decoded.add(decoded[0])
            return decoded

        pipe.vae.decode = watched_decode

    # --- memory

    def phase_failed(self, phase: Phase) -> None:
        self._memory.phase_failed(phase)

    def device_bytes(self) -> int | None:
        return self._memory.held_now()

    def peak_device_bytes(self) -> int | None:
        return self._memory.peak()

    def peak_memory_by_phase(self) -> dict[str, int] | None:
        return self._memory.held if self._memory.is_known else None

    def peak_tensors_by_phase(self) -> dict[str, int] | None:
        return self._memory.tensors if self._memory.is_known else None


class _FiniteCount:
    """How many of the decoded values are finite. The sums stay on the device until the end."""

    def __init__(self) -> None:
        self._finite: Any = 0
        self._all = 0

    def add(self, values: Any) -> None:
        self._finite = self._finite + values.isfinite().sum()
        self._all += values.numel()

    def fraction(self) -> float:
        return int(self._finite) / self._all if self._all else 1.0


class _StepsOfScheduler:
    """For a pipeline without callback: counts the steps of its scheduler while it runs."""

    def __init__(self, scheduler: Any, progress: AttemptProgress) -> None:
        self._scheduler = scheduler
        self._progress = progress

    def __enter__(self) -> None:
        step = self._scheduler.step

        def counted_step(*arguments: Any, **keywords: Any) -> Any:
            result = step(*arguments, **keywords)
            _check_finite(result[0], self._progress)
            self._progress.step_done(len(self._scheduler.timesteps))
            return result

        self._scheduler.step = counted_step

    def __exit__(self, *_: object) -> None:
        del self._scheduler.step  # uncovers the class's own method


def _step_callback(progress: AttemptProgress) -> Callable[..., dict[str, Any]]:
    def after_step(pipe: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        _check_finite(tensors["latents"], progress)
        progress.step_done(pipe.num_timesteps)
        return tensors

    return after_step


def _check_finite(latents: Any, progress: AttemptProgress) -> None:
    """Fails in the step that breaks, instead of after all of them with a valid black clip."""
    if not bool(latents.isfinite().all()):
        raise AttemptFailure(
            FailureClass.NAN, f"the latents of step {progress.steps_done + 1} are not finite; check the lane's dtype"
        )


def attributes_of(call: dict[str, Any]) -> dict[str, Any]:
    """What a call sets as `component.attribute` instead of passing it (`guider.guidance_scale`)."""
    return {path: value for path, value in call.items() if "." in path}


@contextmanager
def set_attributes(pipe: Any, attributes: dict[str, Any]) -> Iterator[None]:
    """The pipeline with these values, by dotted path, and as it was afterwards: a warm runner carries none of them to
    its next call. Raises AttemptFailure(bad_kwargs) for an attribute that is not there.
    """
    before: dict[str, Any] = {}
    try:
        for path, value in attributes.items():
            owner, _, name = path.rpartition(".")
            try:
                before[path] = operator.attrgetter(path)(pipe)
            except AttributeError:
                raise AttemptFailure(
                    FailureClass.BAD_KWARGS, f"{type(pipe).__name__} has no {path}; change [parameters]"
                ) from None
            setattr(operator.attrgetter(owner)(pipe), name, value)
        yield
    finally:
        for path, value in before.items():
            owner, _, name = path.rpartition(".")
            setattr(operator.attrgetter(owner)(pipe), name, value)


def _method(pipe: Any, path: str) -> Callable[[], Any]:
    """`vae.enable_tiling` -> that bound method."""
    method: Callable[[], Any] = operator.attrgetter(path)(pipe)
    return method


def to_uint8(video: Any) -> Any:
    """(T, C, H, W) floats in 0..1 on any device -> numpy (T, H, W, 3) uint8, rounded on the device.

    A quarter of the bytes of a float copy cross to the host.
    """
    import torch

    frames, _, height, width = video.shape
    pixels = torch.empty((frames, height, width, 3), dtype=torch.uint8)
    for start in range(0, frames, UINT8_CHUNK_FRAMES):
        chunk = video[start : start + UINT8_CHUNK_FRAMES].float().mul(255).round_().clamp_(0, 255).to(torch.uint8)
        pixels[start : start + UINT8_CHUNK_FRAMES] = chunk.permute(0, 2, 3, 1)
    return pixels.numpy()
