"""Whatever order of faults: every job ends exactly once, and no two attempts are out on one device.

``HISTORY_SEED=<n> pytest tests/contract/test_histories.py`` replays one history and prints it; ``make histories``
plays many more than the 2,000 of every day.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest

from screentest import folding
from screentest.records import (
    Admitted,
    AttemptEnded,
    Cancelled,
    CancelRequested,
    Completed,
    ControlEvent,
    Drained,
    Failed,
    FailureClass,
    JobEvent,
    Refused,
    RetryRequested,
    Started,
    Submitted,
    SweepEvent,
    SweepSettled,
)
from screentest_scheduler import transitions
from screentest_scheduler.ladder import OUT_OF_MEMORY
from screentest_scheduler.ledger import Ledger
from screentest_scheduler.transitions import Entry
from tests.contract.protocol_model import History, World, Written

REPLAY = "HISTORY_SEED"
SEEDS = int(os.environ.get("HISTORIES", "2000"))
BLOCKS = 8


def seeds_of(block: int) -> Iterable[int]:
    chosen = os.environ.get(REPLAY)
    if chosen is not None:
        return [int(chosen)] if block == 0 else []
    return range(block, SEEDS, BLOCKS)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_history_ends_well(block: int) -> None:
    for seed in seeds_of(block):
        history = History(seed)
        Watch(history.world)
        try:
            world = history.live()
            check(world)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{told(history.world)}\nreplay: {REPLAY}={seed}") from error
        if REPLAY in os.environ:
            sys.stdout.write(told(world))


WANTED = {
    *("Submitted", "Admitted", "Started", "CancelRequested", "AttemptEnded"),
    *("Completed", "Failed", "Refused", "Cancelled"),
    *("attempt 2", "attempt 3", "attempt 4", "cancel True", "cancel False"),
    *("failed infrastructure", "failed timeout", "failed nan", "failed oom_decode"),
    *("rung 1 resident", "rung 2 lean", "rung 3 fp8", "rung 1 fp8"),
    *("SweepPaused", "PrioritySet", "RetryRequested", "SweepSettled", "Drained", "Undrained"),
}


def test_the_histories_meet_what_they_are_for() -> None:
    """Without these the test above would prove little. Drains are the rarest: one history in seventy."""
    missing = set(WANTED)
    for seed in range(SEEDS):
        missing -= met(History(seed).live())
        if not missing:
            return
    assert not missing


def met(world: World) -> set[str]:
    found = {type(written.event.body).__name__ for written in world.log.written}
    for event in itertools.chain.from_iterable(by_job(world).values()):
        found.add(f"attempt {event.attempt}")
        if isinstance(event.body, Admitted):
            found.add(f"rung {event.attempt} {event.body.rung_name}")
        if isinstance(event.body, CancelRequested):
            found.add(f"cancel {event.body.started}")
        if isinstance(event.body, Failed):
            found.add(f"failed {event.body.failure_class}")
    return found


class Watch:
    """Sees every append as it is made.

    No Admitted on a drained device, nor while another attempt is out and has not let go.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._out: dict[str, int] = {}
        self._is_drained = False
        world.log.watchers.append(self._look)

    def _look(self, written: Written) -> None:
        event = written.event
        if isinstance(event, ControlEvent):
            self._is_drained = isinstance(event.body, Drained)
        if not isinstance(event, JobEvent):
            return
        if isinstance(event.body, Admitted):
            assert not self._is_drained, f"{event.job_id} is admitted on a drained device"
            out = [key for key in self._out.items() if key not in self._world.released]
            assert not out, f"{event.job_id} is admitted while {out} is out"
            self._out[event.job_id] = event.attempt
        elif isinstance(event.body, AttemptEnded | Completed | Failed | Refused | Cancelled):
            self._out.pop(event.job_id, None)


def by_job(world: World) -> dict[str, list[JobEvent]]:
    found: dict[str, list[JobEvent]] = {}
    for written in world.log.written:
        if isinstance(written.event, JobEvent):
            found.setdefault(written.event.job_id, []).append(written.event)
    return found


def check(world: World) -> None:
    histories = by_job(world)
    for events in histories.values():
        check_order(events)
        check_ending(events)
        check_budget(events)
        check_rungs(events)
        check_cancel(events)
    check_forgotten(world, histories)
    check_retries(world, histories)
    check_ledgers(world, histories)
    check_settlements(world)


def check_order(events: list[JobEvent]) -> None:
    """Submitted, then attempt after attempt: Admitted, perhaps Started, AttemptEnded, none of them twice."""
    kinds = [type(event.body) for event in events]
    assert kinds[0] is Submitted
    assert Submitted not in kinds[1:], "submitted twice"
    assert len({event.event_id for event in events}) == len(events), "the same event twice"
    attempts = [event.attempt for event in events if isinstance(event.body, Admitted)]
    assert attempts == list(range(1, len(attempts) + 1)), "attempts are not counted one by one"
    for attempt, group in itertools.groupby(events[1:], key=lambda event: event.attempt):
        names = [type(event.body) for event in group if isinstance(event.body, Admitted | Started | AttemptEnded)]
        if attempt:
            assert names[0] is Admitted
            assert names in (
                [Admitted],
                [Admitted, Started],
                [Admitted, AttemptEnded],
                [Admitted, Started, AttemptEnded],
            )


def check_ending(events: list[JobEvent]) -> None:
    """Exactly one terminal event, the last one, and a clip only of the attempt that made it."""
    terminal = [event for event in events if event.state.is_terminal]
    assert len(terminal) == 1, f"{len(terminal)} terminal events"
    assert terminal[0] is events[-1], "something follows the end"
    if isinstance(terminal[0].body, Completed):
        ended = events[-2].body
        assert isinstance(ended, AttemptEnded)
        assert ended.outcome.failure_class is None
        assert terminal[0].body.clip in ended.outcome.artifacts


def check_budget(events: list[JobEvent]) -> None:
    """At most three attempts are lost to the machine after their start; a failure of the job is its last attempt."""
    started, in_a_row, losses = False, 0, 0
    for event, following in itertools.pairwise(events):
        match event.body:
            case Admitted():
                started = False
            case Started():
                started, in_a_row = True, 0
            case AttemptEnded(outcome=outcome) if outcome.infrastructure:
                losses, in_a_row = losses + started, in_a_row + (not started)
                is_last = losses >= transitions.INFRASTRUCTURE_BUDGET or in_a_row >= transitions.UNSTARTED_BUDGET
                if is_last:
                    assert following.state.is_terminal, "the budget is overdrawn"
                    assert isinstance(following.body, Failed | Cancelled)
                elif isinstance(following.body, Failed) and not following.body.cause.startswith("expired"):
                    raise AssertionError("given up before the budget was used")
            case AttemptEnded(outcome=outcome) if outcome.failure_class not in OUT_OF_MEMORY:
                assert following.state.is_terminal, "a job's own failure or success was tried again"


def check_rungs(events: list[JobEvent]) -> None:
    """Out of device memory: the next usable rung follows, and the last one is the end. Nothing else moves the rung."""
    assert isinstance(events[0].body, Submitted)
    ladder, rung = events[0].body.spec.rungs, None
    for event, following in itertools.pairwise(events):
        if isinstance(event.body, Admitted):
            assert ladder[event.body.rung] == event.body.rung_name != "", "a rung that this device has no use for"
            assert rung in {None, event.body.rung}, "another rung than the one that must follow"
            rung = event.body.rung
        if not isinstance(event.body, AttemptEnded) or event.body.outcome.failure_class not in OUT_OF_MEMORY:
            continue
        lower = [index for index in range((rung or 0) + 1, len(ladder)) if ladder[index]]
        if lower:
            rung = lower[0]
            is_early_end = isinstance(following.body, Cancelled | CancelRequested) or is_expired(following)
            assert isinstance(following.body, Admitted) or is_early_end, "a lower rung was left"
        else:
            assert isinstance(following.body, Failed | Cancelled), "went on below the last rung"


def is_expired(event: JobEvent) -> bool:
    return isinstance(event.body, Failed) and event.body.cause.startswith("expired")


def check_cancel(events: list[JobEvent]) -> None:
    """Asked before the start: it never starts. Asked at all: nothing but cancelled comes of it."""
    asked = [index for index, event in enumerate(events) if isinstance(event.body, CancelRequested)]
    assert len(asked) <= 1, "asked twice"
    if not asked:
        return
    request, later = events[asked[0]].body, events[asked[0] + 1 :]
    assert isinstance(request, CancelRequested)
    assert not any(isinstance(event.body, Admitted | Started) for event in later), "it went on after the cancel"
    assert isinstance(events[-1].body, Cancelled)
    # A running attempt is cancelled when it has ended. One that never started is ended at once; where its worker has
    # fallen silent too, it is written off first.
    kinds = [type(event.body) for event in later]
    assert kinds == [AttemptEnded, Cancelled] or (kinds == [Cancelled] and not request.started)


def check_forgotten(world: World, histories: dict[str, list[JobEvent]]) -> None:
    """No attempt waits for its limit, hours away, without a worker that has it or will find it."""
    for job_id, _ in world.forgotten:
        raise AssertionError(
            f"{job_id} was forgotten after {[type(event.body).__name__ for event in histories[job_id]]}"
        )


def check_retries(world: World, histories: dict[str, list[JobEvent]]) -> None:
    """Every retry a person asked for is a job of its own."""
    bodies = [written.event.body for written in world.log.written if isinstance(written.event, SweepEvent)]
    asked = [body.spec.job_id for body in bodies if isinstance(body, RetryRequested)]
    assert len(set(asked)) == len(asked), "two retries share an id"
    assert set(asked) <= histories.keys(), "a retry was forgotten"


def check_ledgers(world: World, histories: dict[str, list[JobEvent]]) -> None:
    """The living memory, one made anew from the stream, and the view of the API agree."""
    living = world.scheduler.ledger
    anew = Ledger()
    for written in world.log.written:
        apply = {"events": anew.apply_job, "sweeps": anew.apply_sweep, "control": anew.apply_control}
        apply[written.subject.partition(".")[0]](written.event, written.sequence)
    assert {name: _lasting(entry) for name, entry in living.jobs.items()} == {
        name: _lasting(entry) for name, entry in anew.jobs.items()
    }
    assert living.open_jobs() == living.active_jobs() == living.expiring_jobs() == []
    assert histories.keys() == living.jobs.keys()
    for job_id, events in histories.items():
        view = None
        for event in events:
            view = folding.fold(view, event)
        assert view is not None
        entry = living.job(job_id)
        assert (view.state, len(view.attempts), view.spec) == (entry.state, entry.attempt, entry.spec)
        if view.failure_class is FailureClass.INFRASTRUCTURE:
            assert view.cause


def _lasting(entry: Entry) -> Entry:
    """Without the time of Submitted: a job submitted again after a lost answer keeps the first time in the stream."""
    return replace(entry, submitted=None)  # type: ignore[arg-type]


def check_settlements(world: World) -> None:
    """A sweep settles once for each number of jobs it has had, and the last time for all."""
    settled: dict[str, list[SweepSettled]] = {}
    for written in world.log.written:
        if isinstance(written.event, SweepEvent) and isinstance(written.event.body, SweepSettled):
            settled.setdefault(written.event.sweep_id, []).append(written.event.body)
    for sweep_id in world.scheduler.ledger.sweeps:
        jobs = world.scheduler.ledger.sweep_jobs(sweep_id)
        numbers = [item.jobs for item in settled[sweep_id]]
        assert numbers == sorted(set(numbers)), "settled twice"
        assert settled[sweep_id][-1].clips == sum(entry.state == "completed" for entry in jobs)
        assert numbers[-1] == len(jobs)


def told(world: World) -> str:
    """The history line by line."""
    lines = []
    for written in world.log.written:
        event, body = written.event, written.event.body
        detail = ""
        if isinstance(event, JobEvent):
            outcome = body.outcome.failure_class if isinstance(body, AttemptEnded) else ""
            detail = f"{event.job_id} ({event.lane_id}) attempt {event.attempt} {outcome}"
        lines.append(f"{event.stamp.boottime_ns / 1e9:8.1f} s  {type(body).__name__:16} {detail}")
    return "\n".join(lines)
