"""What an XID, the driver's error number, means for the next job. Pure.

Source: NVIDIA's Xid catalog, column "Resolution Bucket (Immediate Action)", read on 2026-11-22 at
https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html. NVIDIA/k8s-device-plugin (internal/rm/health.go)
draws the line at the same place, but for 109, which the catalog wants a reset for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """``needs_person``: no job may start before somebody has looked. ``ends_attempts``: as in DeviceFault."""

    number: int
    text: str
    needs_person: bool
    ends_attempts: bool

    def __str__(self) -> str:
        return f"XID {self.number}: {self.text}"


# Buckets RESTART_APP and IGNORE, and 45, which follows a killed process: the application failed, or nothing did. It
# learns of its error from CUDA; the next one finds a sound GPU.
_HARMLESS = {
    8: "GPU stopped processing",
    11: "invalid or corrupted push buffer stream",
    13: "graphics engine exception",
    25: "invalid or illegal push buffer stream",
    31: "GPU memory page fault",
    32: "invalid or corrupted push buffer stream",
    37: "driver firmware error",
    38: "driver firmware error",
    43: "GPU stopped processing",
    44: "graphics engine fault during context switch",
    45: "preemptive cleanup, due to previous errors",
    60: "video processor exception",
    63: "GPU memory remapping event",
    66: "illegal access by driver",
    67: "illegal access by driver",
    68: "NVDEC0 exception",
    69: "graphics engine class error",
    80: "corrupted data sent to GPU",
    82: "NVJPG0 error",
    86: "OFA exception",
    92: "high single-bit ECC error rate",
    93: "non-fatal violation of provisioned InfoROM wear limit",
    94: "contained memory error",
    106: "SMBPBI test message",
    107: "silent SMBPBI test message",
    121: "C2C error",
    137: "NVLink privilege error",
    139: "OFA1 error",
    141: "CUDA fast path error",
    154: "GPU recovery action changed",  # it comments on another XID
    157: "resource retirement failure",
    160: "channel retirement event",
    161: "channel retirement failure",
    162: "power smoothing reengaged",
    163: "power smoothing disengaged",
    164: "power smoothing: low lifetime",
    165: "power smoothing: lifetime exhausted",
    **dict.fromkeys((39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)), "copy engine exception"),
    **dict.fromkeys((83, 84, 88, 89, 96, 97, 98), "NVDEC error"),
    **dict.fromkeys(range(99, 106), "NVJPG error"),
}

# Buckets RESET_GPU, RESTART_BM and RESTART_VM, and 48: the GPU computes nothing that can be trusted before its reset.
_FATAL = {
    46: "GPU stopped processing",
    48: "double-bit ECC error",
    62: "internal micro-controller halt",
    64: "GPU memory remapping failure",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
    109: "context switch timeout error",
    110: "security fault error",
    119: "GSP RPC timeout",
    120: "GSP error",
    136: "link training failed",
    140: "unrecovered ECC error",
    143: "GPU initialization error",
    151: "key rotation error",
    155: "NVLink software-defined error",
    156: "resource retirement event",
    158: "GPU fatal timeout",
}

# What somebody must look at although the job on the GPU may well end in order.
_GRAVE = {
    54: "auxiliary power is not connected to the GPU board",
    74: "NVLink error",
    78: "vGPU start error",
    **dict.fromkeys(range(144, 151), "NVLink error"),
    159: "CHI non-data error",
    167: "PCIe fatal timeout",
    168: "reduced GPU memory capacity",
    169: "internal micro-controller halt",
    171: "uncorrectable DRAM error",
    172: "uncorrectable SRAM error",
}

_NOT_IN_CATALOG = "not in the catalog of this version; look it up in NVIDIA's Xid catalog"


def meaning(number: int) -> Xid:
    """A number that nobody here knows needs a person: unknown is not harmless."""
    if number in _HARMLESS:
        return Xid(number=number, text=_HARMLESS[number], needs_person=False, ends_attempts=False)
    if number in _FATAL:
        return Xid(number=number, text=_FATAL[number], needs_person=True, ends_attempts=True)
    return Xid(number=number, text=_GRAVE.get(number, _NOT_IN_CATALOG), needs_person=True, ends_attempts=False)
