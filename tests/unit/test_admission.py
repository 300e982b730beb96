"""Which job a device gets next, and what the others are told they wait for."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from screentest.records import DeviceFault, JobSpec, Process, ProofKind, Stamp
from screentest_scheduler import admission, transitions
from screentest_scheduler.admission import Candidate, Slot
from tests.made_sweeps import plan, proof, record, specs, stamp

[SPEC] = specs(record([plan("wan", "Wan")]))
FREE = Slot(host="local", device="gpu-0", drained_reason="", holder="", loaded_lane="")
ALIVE = frozenset({"wan", "svd", "mochi"})


def candidate(
    name: str, lane_id: str = "wan", *, priority: int = 0, order: tuple[int, int] = (0, 0), paused: bool = False
) -> Candidate:
    spec: JobSpec = replace(SPEC, job_id=name, lane_id=lane_id)
    entry = transitions.submitted_entry(spec, stamp(0), 1)
    return Candidate(entry=entry, priority=priority, is_paused=paused, order=order)


def chosen(slot: Slot, *candidates: Candidate, alive: frozenset[str] = ALIVE) -> str | None:
    found = admission.choose(slot, candidates, alive)
    return found.entry.spec.job_id if found else None


def test_an_idle_device_gets_the_earliest_job() -> None:
    late, early = candidate("late", order=(2, 0)), candidate("early", order=(1, 5))
    assert chosen(FREE, late, early) == "early"


def test_within_a_sweep_its_own_order_counts() -> None:
    assert chosen(FREE, candidate("b", order=(1, 7)), candidate("a", order=(1, 3))) == "a"


def test_priority_comes_before_the_loaded_lane_and_before_order() -> None:
    slot = replace(FREE, loaded_lane="wan")
    warm, urgent = candidate("warm", "wan"), candidate("urgent", "svd", priority=1, order=(9, 9))
    assert chosen(slot, warm, urgent) == "urgent"
    assert chosen(slot, warm, candidate("later", "svd", priority=-1)) == "warm"


def test_within_one_priority_the_loaded_lane_comes_first() -> None:
    early, warm = candidate("early", "wan"), candidate("warm", "svd", order=(5, 5))
    assert chosen(replace(FREE, loaded_lane="svd"), early, warm) == "warm"
    assert chosen(replace(FREE, loaded_lane="mochi"), early, warm) == "early"


def test_a_job_before_its_time_is_skipped_and_told_what_it_waits_for() -> None:
    held = replace(candidate("judge", priority=9), behind="the keyframe is judged first")
    assert chosen(FREE, held, candidate("next")) == "next"
    assert chosen(FREE, held) is None
    assert admission.waits_for(FREE, held, ALIVE) == "the keyframe is judged first"
    assert admission.waits_for(FREE, held, frozenset()) == "no worker for wan"


def test_paused_sweeps_are_skipped_whatever_their_priority() -> None:
    assert chosen(FREE, candidate("paused", priority=9, paused=True), candidate("next")) == "next"
    assert chosen(FREE, candidate("paused", paused=True)) is None


def test_a_lane_without_a_live_worker_is_skipped() -> None:
    assert chosen(FREE, candidate("first", "dead"), candidate("second")) == "second"
    assert chosen(FREE, candidate("first"), alive=frozenset()) is None


def test_a_drained_device_gets_nothing() -> None:
    assert chosen(replace(FREE, drained_reason="the lock is held"), candidate("a", priority=99)) is None


def test_no_job_no_choice() -> None:
    assert chosen(FREE) is None


def test_a_held_device_still_has_a_successor() -> None:
    """It may be prepared while the holder works."""
    assert chosen(replace(FREE, holder="other"), candidate("next")) == "next"


def test_the_choice_does_not_depend_on_the_order_it_is_asked_in() -> None:
    chance = random.Random(7)
    lanes = ["wan", "svd", "mochi", "dead"]
    jobs = [
        candidate(f"job-{index}", lane, priority=priority, order=(sweep, index), paused=index % 7 == 0)
        for index, (lane, priority, sweep) in enumerate(itertools.product(lanes, (-1, 0, 2), (1, 2)))
    ]
    for loaded in ("", *lanes):
        slot = replace(FREE, loaded_lane=loaded)
        names = {chosen(slot, *chance.sample(jobs, len(jobs))) for _ in range(20)}
        assert len(names) == 1, loaded


@pytest.mark.parametrize(
    ("slot", "waiting", "unproven", "told"),
    [
        (replace(FREE, drained_reason="x", holder="h"), candidate("a", paused=True), "y", "paused"),
        (
            replace(FREE, drained_reason="the lock is held"),
            candidate("a", "dead"),
            "y",
            "GPU drained: the lock is held",
        ),
        (replace(FREE, holder="h", loaded_lane="svd"), candidate("a", "dead"), "y", "no worker for dead"),
        (replace(FREE, holder="h", loaded_lane="svd"), candidate("a"), "y", "local/gpu-0 runs svd"),
        (replace(FREE, holder="h"), candidate("a"), "", "local/gpu-0 runs another job"),
        (FREE, candidate("a"), "pid 7 holds it", "local/gpu-0 is not proven clean: pid 7 holds it"),
        (FREE, candidate("a"), "", "waits its turn on local/gpu-0"),
    ],
)
def test_a_waiting_job_says_why_in_the_order_of_what_to_do_about_it(
    slot: Slot, waiting: Candidate, unproven: str, told: str
) -> None:
    assert admission.waits_for(slot, waiting, ALIVE, unproven) == told


def test_whatever_is_not_chosen_for_a_free_device_has_a_reason() -> None:
    for slot, paused, lane in itertools.product(
        (FREE, replace(FREE, drained_reason="x"), replace(FREE, holder="h")), (True, False), ("wan", "dead")
    ):
        assert admission.waits_for(slot, candidate("a", lane, paused=paused), ALIVE)


def test_the_same_lane_goes_on_and_any_other_takes_over() -> None:
    slot = replace(FREE, loaded_lane="wan")
    assert admission.proof_kind(slot, candidate("a", "wan")) is ProofKind.CONTINUE
    assert admission.proof_kind(slot, candidate("a", "svd")) is ProofKind.HANDOVER
    assert admission.proof_kind(FREE, candidate("a", "wan")) is ProofKind.HANDOVER


def test_a_device_unproven_for_too_long_is_drained_naming_who_holds_it() -> None:
    dirty = proof(
        clean=False,
        lock_holders=(Process(pid=77, start_ticks=1, command="python"),),
        processes=(Process(pid=88, start_ticks=1),),
    )
    assert admission.drain_reason(dirty, admission.DRAIN_AFTER_S - 0.1) == ""
    told = admission.drain_reason(dirty, admission.DRAIN_AFTER_S)
    assert told == "not clean for 60 s: the lock is held by pid 77; also seen: pid 88"


def test_a_clean_device_is_never_drained() -> None:
    assert admission.drain_reason(proof(), 1e9) == ""


def fault(second: int, *, ends_attempts: bool = True) -> DeviceFault:
    return DeviceFault(
        host="local",
        device="gpu-0",
        gpu_uuid="GPU-aaaa",
        xid=79,
        cause="XID 79: GPU has fallen off the bus",
        ends_attempts=ends_attempts,
        stamp=stamp(second),
    )


@pytest.mark.parametrize(
    ("new", "drained_for", "undrained", "is_news"),
    [
        (fault(5), None, None, True),
        (fault(5), None, stamp(4), True),
        (fault(5), None, stamp(6), False),  # telemetry repeats it; somebody has looked meanwhile
        (fault(5), fault(5), None, False),
        (fault(5), fault(3), None, False),
        (fault(5), fault(3, ends_attempts=False), None, True),
        (fault(5, ends_attempts=False), fault(3, ends_attempts=False), None, False),
    ],
)
def test_a_fault_drains_once_and_again_only_when_it_is_worse_or_after_somebody_looked(
    new: DeviceFault, drained_for: DeviceFault | None, undrained: Stamp | None, is_news: bool
) -> None:
    assert admission.is_news(new, drained_for, undrained) is is_news
