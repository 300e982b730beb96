"""What the worker holds of one attempt, and how its turn on the device can end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from screentest.kit.bus import Delivery
from screentest.records import Dispatch, Outcome
from screentest_runner.protocol import Decoded, Judged
from screentest_worker import outcome
from screentest_worker.ledger import StopReason
from screentest_worker.manifest import Circumstances
from screentest_worker.phases import PhaseLog, ProgressFeed
from screentest_worker.supervisor import Child


class InHand:
    """One attempt this worker holds, from its delivery to its acknowledgement."""

    def __init__(self, dispatch: Dispatch, delivery: Delivery | None, feed: ProgressFeed) -> None:
        self.dispatch = dispatch
        self.delivery = delivery  # the newest one: a redelivery replaces it; None = found in the spool
        self.feed = feed
        self.phases = PhaseLog()
        self.sequence = dispatch.admitted_sequence  # of our last event; what AttemptEnded must follow
        self.has_started = False
        self.began_ns = 0  # CLOCK_BOOTTIME of Started
        self.deadline: float | None = None  # time.monotonic(), of the whole attempt
        self.stop = asyncio.Event()
        self.stop_reason: StopReason | None = None
        self.stop_cause = ""

    @property
    def key(self) -> tuple[str, int]:
        return self.dispatch.spec.job_id, self.dispatch.attempt

    def left_s(self) -> float | None:
        """Seconds of the attempt limit that are left, at least enough for one try; None = no limit is known."""
        return None if self.deadline is None else max(5.0, self.deadline - time.monotonic())

    def request_stop(self, reason: StopReason, cause: str = "") -> None:
        """The first reason stays."""
        if self.stop_reason is None:
            self.stop_reason, self.stop_cause = reason, cause
        self.stop.set()

    def stopped(self) -> Outcome:
        """How an attempt ends that was told to stop."""
        if self.stop_reason is StopReason.GPU_FAULT:
            return outcome.gpu_fault(self.stop_cause, self.phases.current)
        return outcome.cancelled(self.phases.current)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """The attempt is not ours any more; only its delivery is left to acknowledge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Helpers:
    """The children that wait for the frames while the runner denoises."""

    encoder: Child
    probe: Child


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutResult:
    """The attempt has ended; ``log`` is what its runner wrote, the last 1 MiB."""

    outcome: Outcome
    log: bytes
    circumstances: Circumstances


@dataclass(frozen=True, slots=True, kw_only=True)
class WithResult:
    """The runner's frames or judgement lie on scratch and the device is free.

    ``outcome``: what is known by now, without what becomes of them. ``helpers``: None where none were started.
    """

    answer: Decoded | Judged
    path: Path
    helpers: Helpers | None
    outcome: Outcome
    log: bytes
    circumstances: Circumstances


TurnEnd = Dropped | WithoutResult | WithResult
