"""The work of a lane: what its attempts fetch, ask of the runner and leave behind. A worker has one such value.

Everything else in this package is the same for a model that makes clips and a judge that looks at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from screentest.records import Artifact, ArtifactKind, DeviceFacts, Dispatch, FailureClass, JobSpec, Mark, Outcome
from screentest_runner.protocol import Generate, Judge, Load, Weights
from screentest_worker.admission import Shortage
from screentest_worker.device_memory import DeviceMemory
from screentest_worker.hand import InHand, WithResult
from screentest_worker.preflight import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A job as the rung of its attempt runs it. ``marks``: what that takes from the picture."""

    spec: JobSpec
    rung_name: str
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What an attempt leaves: its file in the spool, and the outcome with what was read from that file."""

    artifact: Artifact
    outcome: Outcome


class Work(Protocol):
    """One lane's work.

    content: the lane's file, as the runner gets it. result: the kind of what an attempt leaves. bad_input_fix: what a
    person can do when `order` says BadRequest. fixes: what to do about a failure of the runner, where this work knows
    better than the table in `outcome`.
    """

    lane_id: str
    lane_digest: str
    content: dict[str, Any]
    result: ArtifactKind
    bad_input_fix: str
    fixes: Mapping[FailureClass, str]

    def counts_memory(self, spec: JobSpec) -> bool:
        """Whether the job's device memory is worth a look."""

    def preflight(self, spec: JobSpec, rung: int | None, device: DeviceFacts | None) -> Decision:
        """Whether the job can be done here, from the facts of this moment. Reads files: milliseconds.

        rung: of an attempt that is about to start, None for a job that asks where it may begin. device: as telemetry
        has just read it, None = nothing is said of memory.
        """

    def shortage(self, dispatch: Dispatch, memory: DeviceMemory) -> Shortage | None:
        """Why the attempt cannot fit into what is free at this moment; None when it can, or nobody knows."""

    def ran(self, dispatch: Dispatch) -> Ran: ...

    def weights(self, spec: JobSpec) -> Weights:
        """Which weights a runner must have loaded for this job."""

    def load(self, dispatch: Dispatch, attempt_id: str, *, unified_memory: bool) -> Load: ...

    async def order(self, dispatch: Dispatch, attempt_id: str, path: Path) -> Generate | Judge:
        """What the runner is asked, once everything that it needs is fetched; what it makes goes to ``path``.

        Raises BadRequest when what the job names cannot be had, Unavailable or OSError when another try may do.
        """

    def forget(self, order: Generate | Judge) -> None:
        """Removes what was fetched for this attempt alone."""

    async def make(self, hand: InHand, end: WithResult) -> Made | Outcome:
        """The file to deliver, or why there is none. What the runner left on scratch is gone afterwards."""
