"""What preflight finds wrong with a job, a lane or its weights; pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Check(StrEnum):
    """What was looked at."""

    LANE = "lane"
    ENV = "env"
    LAYOUT = "layout"
    ARCHITECTURE = "architecture"
    DTYPE = "dtype"
    SIGNATURE = "signature"
    SHAPE = "shape"
    KEYFRAME = "keyframe"
    RUNG = "rung"
    MEMORY = "memory"
    SERVER = "server"  # of a judge that asks another machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that makes a job impossible. ``reason`` and ``fix`` are one line each; neither is empty."""

    check: Check
    reason: str
    fix: str
