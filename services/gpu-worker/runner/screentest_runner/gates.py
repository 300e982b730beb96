"""Checks of a freshly loaded pipeline: conditions under which a clip would come out, but not of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass

# Spaces, a blank line, digits and an accent: what differs between a right and a half-right tokenizer.
PROBE = "A cat walks,  slowly.\n\nÉtude No. 271: <glass> & steel"


CONV3D_SHAPES = ((1, 16, 5, 24, 24), (16, 16, 3, 3, 3))  # pixels and weight: the kernel that VAEs use
CONV3D_TOLERANCE = 0.02  # of the largest value; bfloat16 itself rounds by up to 0.004


def check_folder(folder: Path, lane_id: str) -> None:
    """A pipeline folder has a model_index.json. Raises AttemptFailure(layout) before anything is read.

    A repository may hold a bare transformer (SkyworkAI/SkyReels-V1#18); a pull puts the rest of the pipeline beside it.
    """
    if (folder / "model_index.json").is_file():
        return
    found = (
        "a single model, not a diffusers pipeline" if (folder / "config.json").is_file() else "no diffusers pipeline"
    )
    raise AttemptFailure(
        FailureClass.LAYOUT,
        f"no model_index.json in {folder}: it holds {found}; run `screentest models pull {lane_id}`",
    )


def check_channels(pipeline: Any, denoiser: str, expected: int | None) -> None:
    """The denoiser takes as many channels as the lane's architecture says. Raises AttemptFailure(channels).

    Text-to-video weights in an image-to-video lane load without complaint and fail at the first step, after the prompt
    and the keyframe were encoded. expected: None when the lane file does not say.
    """
    if expected is None:
        return
    found = getattr(pipeline, denoiser).config.in_channels
    if found != expected:
        raise AttemptFailure(
            FailureClass.CHANNELS,
            f"the {denoiser} of these weights takes {found} channels, components.{denoiser}.config says {expected}; "
            "they belong to another kind of pipeline",
        )


def check_init(pipeline: Any, expected: Mapping[str, Any]) -> None:
    """The pipeline was made with the arguments that the lane file names. Raises AttemptFailure(layout).

    Without boundary_ratio, Wan 2.2 A14B would run its high-noise half alone, to a clip that looks like a bad model's.
    """
    for name, value in expected.items():
        found = pipeline.config.get(name)
        if found != value:
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"model_index.json of these weights says {name} = {found!r}, pipeline.init of the lane says {value!r}; "
                "they belong to another kind of pipeline",
            )


def check_tokenizers(pipeline: Any, folder: Path) -> None:
    """Every tokenizer must split as its own tokenizer.json says, whatever class the library chose for it.

    Raises AttemptFailure(conditioning). transformers 5 reads some files with another class and loses the spaces
    between words, silently (huggingface/transformers#45488). A tokenizer without tokenizer.json cannot be checked.
    """
    from tokenizers import Tokenizer

    for name, part in pipeline.components.items():
        file = folder / name / "tokenizer.json"
        if not name.startswith("tokenizer") or part is None or not file.is_file():
            continue
        wanted = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids
        got = part(PROBE, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
        if got != wanted:
            raise AttemptFailure(
                FailureClass.CONDITIONING,
                f"{name} ({type(part).__name__}) does not split text as its tokenizer.json says: {got[:12]} instead of "
                f"{wanted[:12]}; name the right class in components.{name} of the lane file",
            )


def check_call(call: Mapping[str, Any], expected: Mapping[str, Any], lane_id: str) -> None:
    """What the lane passes on every call is in this one. Raises AttemptFailure(bad_kwargs).

    SkyReelsV2DiffusionForcingPipeline keeps a causal_block_size from one call to the next, and frames of noise with it
    (huggingface/diffusers#13609): a warm pipeline must be told each time.
    """
    if missing := sorted(expected.keys() - call.keys()):
        raise AttemptFailure(
            FailureClass.BAD_KWARGS,
            f"the call lacks {', '.join(missing)}, which [call] of lane {lane_id!r} passes on every one",
        )


def check_conv3d(device: Any, conv3d: Callable[..., Any] | None = None) -> None:
    """A small bfloat16 conv3d on this device agrees with float64. Raises AttemptFailure(infrastructure): it is the
    machine's software, no matter of the job.

    torch 2.9.0 and 2.9.1 with cuDNN below 9.15 computed it wrongly or with three times the memory (pytorch/pytorch
    issues 166643, 163539); every video VAE is made of it. conv3d: what is checked, None for torch's own.
    """
    import torch

    generator = torch.Generator("cpu").manual_seed(0)
    pixels, weight = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in CONV3D_SHAPES)
    exact = torch.nn.functional.conv3d(pixels.cpu().double(), weight.cpu().double(), padding=1)
    found = (conv3d or torch.nn.functional.conv3d)(pixels, weight, padding=1).cpu().double()
    off = float((found - exact).abs().max() / exact.abs().max())
    if not off < CONV3D_TOLERANCE:  # also when it is not a number
        raise AttemptFailure(
            FailureClass.INFRASTRUCTURE,
            f"conv3d in bfloat16 is off by {off:.0%} on {device}, so every clip would be wrong: torch "
            f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}; install cuDNN from 9.15 or another torch",
        )


def check_text_encoders(pipeline: Any) -> None:
    """No token embedding may be all zero: every prompt would be the same. Raises AttemptFailure(conditioning).

    Early releases of transformers 5 left UMT5's untied embedding at zero (huggingface/transformers#43880).
    """
    for name, part in pipeline.components.items():
        if not name.startswith("text_encoder") or part is None:
            continue
        if not part.get_input_embeddings().weight.any():
            raise AttemptFailure(
                FailureClass.CONDITIONING, f"the token embedding of {name} ({type(part).__name__}) is all zero"
            )
