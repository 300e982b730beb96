"""Counts the floating point operations of a lane's denoiser at full size, without its weights and without a GPU.

The real pipeline is called on the host with parts of full size that hold no values: text and image encoders whose big
layers return zeros of the right shape, a miniature VAE, and a denoiser that catches its arguments and ends the call.
With these arguments, their values gone (torch's fake tensors), the full-size denoiser runs once
under torch.utils.flop_counter. A polynomial through several shapes is what a lane file's `[cost]` holds:

    python -m screentest_runner.counting deploy/lanes/wan2-1-t2v-1-3b.toml
"""

from __future__ import annotations

import inspect
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from screentest_runner import full_random, miniature
from screentest_runner.adapters import ADAPTERS, placement
from screentest_runner.adapters.diffusers import attributes_of, set_attributes

TERMS = ("constant", "frames", "tokens", "spatial", "temporal", "joint")
NEGLIGIBLE = 3e-4  # error of every counted shape, up to which fewer terms explain it as well
TOLERANCE = 5e-3  # of every counted shape against the polynomial; an UNet has levels that no single term follows


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    width_px: int
    height_px: int
    num_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """One call of the denoiser. batch: samples that it computes at a time."""

    tflop: float
    batch: int


class _CallCaught(Exception):
    """The denoiser's arguments are known; nothing after them is of interest."""

    def __init__(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        super().__init__("the denoiser was called")
        self.arguments, self.keywords = arguments, keywords


class Counter:
    """Holds a lane's pipeline without values."""

    def __init__(self, lane: dict[str, Any]) -> None:
        self.lane = lane
        self._adapter = ADAPTERS[lane["pipeline"]["adapter"]](lane)
        pipeline_class = self._adapter.pipeline_class()
        parts = {name: _part(name, part, lane, pipeline_class) for name, part in lane["components"].items()}
        self._pipe = pipeline_class(**parts, **lane["pipeline"].get("init", {}))
        self._pipe.set_progress_bar_config(disable=True)
        names = placement.denoiser_names(self._pipe)
        for name in names:
            getattr(self._pipe, name).forward = _catch
        self._empty = full_random.make_empty(names[0], lane["components"][names[0]], lane, pipeline_class).eval()
        _take_values(self._empty)

    def forward(self, shape: Shape) -> Forward:
        """What the first call of the denoiser computes for a clip of this shape."""
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        caught = self._caught(shape)
        counter = FlopCounterMode(display=False)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        arguments, keywords = _without_values(caught.arguments, mode), _without_values(caught.keywords, mode)
        # the counter knows attention as matrix products, not the host's own kernel for it
        with torch.no_grad(), mode, _everything_selected(), sdpa_kernel(SDPBackend.MATH), counter:
            self._empty(*arguments, **keywords)
        return Forward(tflop=counter.get_total_flops() / 1e12, batch=_batch(caught))

    def _caught(self, shape: Shape) -> _CallCaught:
        import torch

        call = self._call(shape)
        arguments = {keyword: value for keyword, value in call.items() if "." not in keyword}
        if self.lane["task"] == "i2v":
            arguments[self.lane["parameters"]["keyframe"]] = _keyframe(shape)
        arguments |= {"generator": torch.Generator("cpu").manual_seed(0), "output_type": "pt"}
        try:
            with torch.no_grad(), set_attributes(self._pipe, attributes_of(call)):
                self._pipe(**arguments)
        except _CallCaught as caught:
            return caught
        raise RuntimeError(f"lane {self.lane['id']!r}: the pipeline ended without a call of its denoiser")

    def _call(self, shape: Shape) -> dict[str, Any]:
        """The lane's own call at this shape."""
        values = {**self.lane["defaults"], "prompt": PROMPT}
        values |= {"width_px": shape.width_px, "height_px": shape.height_px, "num_frames": shape.num_frames}
        keywords = {name: keyword for name, keyword in self.lane["parameters"].items() if name in values}
        return {**self.lane.get("call", {}), **{keyword: values[name] for name, keyword in keywords.items()}}


PROMPT = "A cathedral of obsidian under cracked glass, two figures in heavy coats, slow dolly in, film grain."


def tokens(lane: Mapping[str, Any], shape: Shape) -> tuple[int, int]:
    """(latent frames, tokens per frame) by the lane's `[cost.token]`."""
    token = lane["cost"]["token"]
    per_frame = (shape.width_px // token["width_px"]) * (shape.height_px // token["height_px"])
    return (shape.num_frames - 1) // token["frames"] + 1, per_frame


def coefficients(lane: dict[str, Any]) -> dict[str, float]:
    """The polynomial of `[cost.tflop]`, of batch 1: least squares over the shapes of `shapes`.

    Raises ValueError where a shape lies off it: the lane's tokens are then not what its denoiser computes.
    """
    import numpy as np

    counter = Counter(lane)
    points = [(tokens(lane, shape), counter.forward(shape)) for shape in shapes(lane)]
    rows = np.array([_terms(*point) for point, _ in points])
    counted = np.array([forward.tflop / forward.batch for _, forward in points])
    solved, off = _fewest_terms(rows / counted[:, None])
    if off > TOLERANCE:
        raise ValueError(f"lane {lane['id']!r}: a counted shape is {off:.2%} off the polynomial; see cost.token")
    return {TERMS[index]: value for index, value in solved.items()}


def _fewest_terms(shares: Any) -> tuple[dict[int, float], float]:
    """Coefficients by term, and the largest error: of the terms that an architecture has, by leaving out one after the
    other while the rest explains all shapes as well. shares: a row for each shape, its terms over what was counted, so
    that all shapes weigh alike.
    """
    used = list(range(shares.shape[1]))
    solved, off = _solved(shares, used)
    while len(used) > 1:
        rests = [[index for index in used if index != left_out] for left_out in used]
        rest = min(rests, key=lambda chosen: _solved(shares, chosen)[1])
        found, rest_off = _solved(shares, rest)
        if rest_off > NEGLIGIBLE and solved.min() >= 0:
            break
        if rest_off > NEGLIGIBLE:  # a negative term only bends the others
            rest = [index for index in used if index != used[int(solved.argmin())]]
            found, rest_off = _solved(shares, rest)
        used, solved, off = rest, found, rest_off
    return dict(zip(used, map(float, solved), strict=True)), off


def _solved(shares: Any, used: list[int]) -> tuple[Any, float]:
    """Least squares of these terms alone, and its largest error."""
    import numpy as np

    scale = shares[:, used].max(axis=0)
    solved = np.linalg.lstsq(shares[:, used] / scale, np.ones(len(shares)), rcond=None)[0] / scale
    return solved, float(np.abs(shares[:, used] @ solved - 1).max())


def _terms(t: int, a: int) -> list[float]:
    return [1.0, t, t * a, t * a**2, t**2 * a, (t * a) ** 2]


def shapes(lane: Mapping[str, Any]) -> list[Shape]:
    """Legal shapes to count: three frame counts at a small size, two at two larger ones, the lane's own shape last.

    Where the keyframe decides the size, the pipeline rounds it to one of its own: all are of the lane's size then.
    """
    rule, own = lane["constraints"]["frames"], lane["defaults"]
    own_size = (own["width_px"], own["height_px"])
    multiple, plus = rule["multiple"], rule["plus"][-1]
    few, some, many = [plus + multiple * step for step in (2, 4, 7)] if multiple > 1 else [4, 9, 16]
    step_px = lane["constraints"]["size_multiple_px"]
    unit = -(-192 // step_px) * step_px
    small, wide, square = (unit, unit), (2 * unit, unit), (2 * unit, 2 * unit)
    if lane["constraints"].get("size_follows_keyframe"):
        chosen = [(own_size, few), (own_size, some), (own_size, many)]
    else:
        chosen = [(small, few), (small, some), (small, many), (wide, some), (wide, many), (square, few), (square, some)]
    return [
        Shape(width_px=w, height_px=h, num_frames=count) for (w, h), count in (*chosen, (own_size, own["num_frames"]))
    ]


# --- parts without values ---------------------------------------------------------------------------------------------


def _part(name: str, part: Mapping[str, Any], lane: dict[str, Any], pipeline_class: type) -> Any:
    """A component as the pipeline needs it to get to its denoiser."""
    import torch

    if name == "vae" and lane["task"] == "i2v":
        return miniature.make(name, part, lane, pipeline_class)  # it encodes the keyframe
    made = full_random.make_empty(name, part, lane, pipeline_class)
    if isinstance(made, torch.nn.Module):
        _take_values(made.eval())
        _skip_big_layers(made)
        made.forward = _once(made.forward)
    return made


def _once(forward: Any) -> Any:
    """Computes once for each shape of its arguments: without values nothing else can differ."""
    answers: dict[Any, Any] = {}

    def remembered(*arguments: Any, **keywords: Any) -> Any:
        shape = repr((_shapes_of(arguments), _shapes_of(keywords)))
        if shape not in answers:
            answers[shape] = _zeros_of_its_answer(forward, arguments, keywords)
        return answers[shape]

    remembered.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # transformers reads it
    return remembered


def _zeros_of_its_answer(forward: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The answer's shapes from fake tensors, in a tenth of the time, where no shape depends on a value."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._pytree import tree_map_only

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            answer = forward(*_without_values(arguments, mode), **_without_values(keywords, mode))
    except RuntimeError:
        return forward(*arguments, **keywords)
    return tree_map_only(FakeTensor, lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype), answer)


def _shapes_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shapes_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shapes_of(item) for item in value]
    return getattr(value, "shape", value)


def _take_values(model: Any) -> None:
    """Every weight becomes one zero, seen in the weight's shape: no memory, and on the host as far as anyone asks."""
    import torch

    for module in model.modules():
        for leaf, empty in list(module.named_parameters(recurse=False)):
            values = torch.zeros(()).expand(empty.shape)
            module.register_parameter(leaf, torch.nn.Parameter(values, requires_grad=False))


def _skip_big_layers(model: Any) -> None:
    """Linear layers and embeddings return zeros of their shape, without the work."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = _zeros_of(module.out_features)
        elif isinstance(module, torch.nn.Embedding):
            module.forward = _zeros_for_ids(module.embedding_dim)


def _zeros_of(width: int) -> Any:
    def forward(values: Any) -> Any:
        return values.new_zeros((*values.shape[:-1], width))

    return forward


def _zeros_for_ids(width: int) -> Any:
    def forward(ids: Any) -> Any:
        import torch

        return torch.zeros((*ids.shape, width))

    return forward


def _catch(*arguments: Any, **keywords: Any) -> Any:
    raise _CallCaught(arguments, keywords)


def _without_values(value: Any, mode: Any) -> Any:
    """The value with every tensor in it a fake one."""
    import torch

    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    if isinstance(value, dict):
        return {key: _without_values(item, mode) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_values(item, mode) for item in value)
    return value


def _everything_selected() -> Any:
    """A mode in which masks select everything: what they select has no shape without their values. A full prompt does
    fill its mask (Mochi), and where what is left out is appended at the end (HunyuanVideo 1.5) the sum is the same.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class EverythingSelected(TorchFunctionMode):
        def __torch_function__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if called is torch.nonzero:
                return torch.arange(args[0].numel()).unsqueeze(1)
            if called is torch.Tensor.__bool__:
                return True
            if called is torch.Tensor.__getitem__ and getattr(args[1], "dtype", None) is torch.bool:
                values = args[0].flatten(0, args[1].ndim - 1)
                return values[:0] if getattr(args[1], "is_inverse", False) else values
            result = called(*args, **(kwargs or {}))
            if called is torch.Tensor.__invert__:
                result.is_inverse = True
            return result

    return EverythingSelected()


def _batch(caught: _CallCaught) -> int:
    import torch

    tensors: Iterator[Any] = (value for value in (*caught.arguments, *caught.keywords.values()))
    return next(len(value) for value in tensors if isinstance(value, torch.Tensor) and value.ndim > 2)


def _keyframe(shape: Shape) -> Any:
    from PIL import Image

    return Image.new("RGB", (shape.width_px, shape.height_px))


def main() -> None:
    for path in sys.argv[1:]:
        found = coefficients(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        print("[cost.tflop]", *(f"{name} = {value:.6g}" for name, value in found.items()), sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
