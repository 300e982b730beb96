"""Which class an exception of the libraries belongs to: whether the ladder is tried, or a person looks at the card."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from screentest_runner.failures import classify
from screentest_runner.protocol import FailureClass, Phase


class OutOfMemoryError(RuntimeError):
    """Stands for torch's own."""


class AcceleratorError(RuntimeError):
    """Stands for torch's own: every error that a CUDA call reports."""


@pytest.fixture(autouse=True)
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    names = SimpleNamespace(OutOfMemoryError=OutOfMemoryError, AcceleratorError=AcceleratorError)
    monkeypatch.setitem(sys.modules, "torch", names)


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_want_of_device_memory_is_told_by_its_phase_whoever_wanted_it(error: Exception) -> None:
    """Beside a stranger that fills the card, CUDA's context is what fails first: no reason to reset a GPU."""
    phases = (Phase.LOADING, Phase.ENCODING_PROMPT, Phase.DENOISING, Phase.DECODING)
    assert [classify(error, phase) for phase in phases] == [
        FailureClass.OOM_LOAD,
        FailureClass.OOM_ENCODE,
        FailureClass.OOM_DENOISE,
        FailureClass.OOM_DECODE,
    ]


def test_other_errors_of_a_cuda_call_are_faults() -> None:
    error = AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert classify(error, Phase.DENOISING) is FailureClass.GPU_FAULT


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["python", "torch"],
)
def test_want_of_host_memory_is_no_matter_of_rungs(error: Exception) -> None:
    assert classify(error, Phase.LOADING) is FailureClass.HOST_OOM


def test_what_is_not_known_is_not_guessed() -> None:
    assert classify(RuntimeError("out of memory, said somebody"), Phase.LOADING) is FailureClass.UNCLASSIFIED
