"""What this worker writes into a job's history: Started and AttemptEnded, each fenced by the sequence before it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum

import structlog

from screentest import subjects, wire
from screentest.errors import Exhausted, Unavailable
from screentest.kit import clock
from screentest.kit.bus import Append, Bus, WrongLastSequence
from screentest.records import (
    AttemptEnded,
    CancelRequested,
    Dispatch,
    JobEvent,
    JobState,
    Outcome,
    Started,
)
from screentest_worker import outcome as outcomes

log = structlog.get_logger()

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0


class AfterRefusal(StrEnum):
    """What to do when somebody else has written to the job first."""

    END_CANCELLED = "end_cancelled"
    DISCARD = "discard"


def after_refusal(last: JobEvent | None, attempt: int) -> AfterRefusal:
    """A person's cancel of this very attempt wants its end from us; anything newer is somebody else's decision."""
    if (
        last is not None
        and last.attempt == attempt
        and isinstance(last.body, CancelRequested)
        and last.state is JobState.RUNNING
    ):
        return AfterRefusal.END_CANCELLED
    return AfterRefusal.DISCARD


class StopReason(StrEnum):
    """Why an attempt must end before its time."""

    CANCELLED = "cancelled"  # a person asked
    ABANDONED = "abandoned"  # somebody else has ended it in the job's history
    GPU_FAULT = "gpu_fault"  # the device failed below it


def stop_reason(last: JobEvent | None, attempt: int) -> StopReason | None:
    """Whether an attempt that has started must stop, as its history stands."""
    if last is None or last.state.is_terminal or last.attempt != attempt or isinstance(last.body, AttemptEnded):
        return StopReason.ABANDONED
    return StopReason.CANCELLED if isinstance(last.body, CancelRequested) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LastEvent:
    event: JobEvent
    sequence: int


class Ledger:
    """The job events of one lane."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def last(self, dispatch: Dispatch) -> LastEvent | None:
        """The last event of the dispatched job, None when it has none (any more). Waits while the broker is away."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                stored = await self._bus.last(subjects.EVENTS_STREAM, _subject(dispatch))
            except Unavailable as error:
                pause_s = await _pause(pause_s, "last_event_not_read", error)
                continue
            if stored is None:
                return None
            return LastEvent(event=wire.decode(stored.payload, JobEvent), sequence=stored.sequence)

    async def start(self, dispatch: Dispatch, body: Started) -> int:
        """Writes Started and returns its sequence; WrongLastSequence when the job has moved on since its Admitted."""
        return await self._append(_event(dispatch, JobState.RUNNING, body), dispatch, dispatch.admitted_sequence)

    async def end(self, dispatch: Dispatch, outcome: Outcome, expected_sequence: int) -> Outcome | None:
        """Writes AttemptEnded; returns the outcome as written, or None when it was not ours to write any more."""
        while True:
            try:
                await self._append(
                    _event(dispatch, JobState.ENDED, AttemptEnded(outcome=outcome)), dispatch, expected_sequence
                )
            except WrongLastSequence:
                last = await self.last(dispatch)
                match after_refusal(last.event if last else None, dispatch.attempt):
                    case AfterRefusal.END_CANCELLED if last is not None:
                        # The person asked before we were done: it is cancelled even if the clip is complete.
                        outcome = outcomes.as_cancelled(outcome)
                        expected_sequence = last.sequence
                    case _:
                        return None
            else:
                return outcome

    async def _append(self, event: JobEvent, dispatch: Dispatch, expected_sequence: int) -> int:
        """Tries for as long as the broker is away: the event id makes a second try of the same event harmless."""
        append = Append(
            subject=_subject(dispatch),
            payload=wire.encode(event),
            expected_sequence=expected_sequence,
            event_id=event.event_id,
        )
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self._bus.append(append)
            except (Unavailable, Exhausted) as error:
                pause_s = await _pause(pause_s, "event_not_written", error)


def _subject(dispatch: Dispatch) -> str:
    spec = dispatch.spec
    return subjects.job_events(spec.sweep_id, spec.lane_id, spec.job_id)


def _event(dispatch: Dispatch, state: JobState, body: Started | AttemptEnded) -> JobEvent:
    return JobEvent(
        event_id=clock.new_event_id(),
        sweep_id=dispatch.spec.sweep_id,
        lane_id=dispatch.spec.lane_id,
        job_id=dispatch.spec.job_id,
        attempt=dispatch.attempt,
        state=state,
        stamp=clock.stamp(),
        body=body,
    )


async def _pause(pause_s: float, event: str, error: Exception) -> float:
    """Waits and returns how long to wait the next time."""
    log.warning(event, error=str(error), again_in_s=pause_s)
    await asyncio.sleep(pause_s)
    return min(2 * pause_s, LONGEST_PAUSE_S)
