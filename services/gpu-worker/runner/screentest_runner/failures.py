"""Which failure class an exception belongs to: exact types and texts seen in the libraries, never a guess."""

from __future__ import annotations

import re
import sys

from screentest_runner.protocol import FailureClass, Phase

OOM_BY_PHASE = {
    Phase.PREPARING: FailureClass.OOM_LOAD,
    Phase.LOADING: FailureClass.OOM_LOAD,
    Phase.ENCODING_PROMPT: FailureClass.OOM_ENCODE,
    Phase.DENOISING: FailureClass.OOM_DENOISE,
    Phase.DECODING: FailureClass.OOM_DECODE,
    Phase.DECODED: FailureClass.OOM_DECODE,
    Phase.JUDGING: FailureClass.OOM_DENOISE,  # what a judge computes is its own main part
}

# torch raises one RuntimeError type for all of these, so only the text tells (diffusers 0.42.1, torch 2.13)
CHANNELS_TEXT = re.compile(r"expected input\[.*\] to have \d+ channels, but got \d+ channels")
LAYOUT_TEXT = re.compile(r"no file named (model_index\.json|config\.json|.*\.safetensors)", re.IGNORECASE)
CONDITIONING_TEXT = re.compile(r"Image features and image tokens do not match")
# what is no torch.OutOfMemoryError: CUDA's own allocations (deepbeepmeep/Wan2GP#1083), cuBLAS's and cuDNN's
DEVICE_OOM_TEXT = re.compile(r"CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED")
HOST_OOM_TEXT = re.compile(r"DefaultCPUAllocator: can't allocate memory")
KEYWORD_TEXT = re.compile(r"got an unexpected keyword argument")


class AttemptFailure(Exception):
    """An ending that the runner itself found; its class is known where it is raised."""

    def __init__(self, failure_class: FailureClass, message: str) -> None:
        super().__init__(message)
        self.failure_class = failure_class


def classify(error: BaseException, phase: Phase) -> FailureClass:
    """The class of an exception that ended a phase. Anything not known for certain is `unclassified`."""
    if isinstance(error, AttemptFailure):
        return error.failure_class
    if _is_host_oom(error):
        return FailureClass.HOST_OOM
    if _is_device_oom(error):
        return OOM_BY_PHASE[phase]
    if _is_gpu_fault(error):
        return FailureClass.GPU_FAULT
    text = str(error)
    if isinstance(error, TypeError) and KEYWORD_TEXT.search(text):
        return FailureClass.BAD_KWARGS
    if isinstance(error, RuntimeError) and CHANNELS_TEXT.search(text):
        return FailureClass.CHANNELS
    if isinstance(error, ValueError) and CONDITIONING_TEXT.search(text):
        return FailureClass.CONDITIONING
    if isinstance(error, OSError) and phase is Phase.LOADING and LAYOUT_TEXT.search(text):
        return FailureClass.LAYOUT
    return FailureClass.UNCLASSIFIED


def _is_host_oom(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and HOST_OOM_TEXT.search(str(error)) is not None
    )


def _is_device_oom(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # not imported here: the stub lane has no torch
    if torch is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or DEVICE_OOM_TEXT.search(str(error)) is not None


def _is_gpu_fault(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError)
