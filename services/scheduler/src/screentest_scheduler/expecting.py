"""What each open job is expected to wait and to take, from what is known of it and what every device does now."""

from __future__ import annotations

from screentest.kit import clock
from screentest.records import Estimate, JobSpec
from screentest_scheduler import forecast, transitions
from screentest_scheduler.admission import Candidate, Slot
from screentest_scheduler.conducting import Conductor
from screentest_scheduler.forecast import Cost, Expectation
from screentest_scheduler.ledger import Ledger
from screentest_scheduler.planning import Placement
from screentest_scheduler.transitions import Entry

UNKNOWN = Cost(load_s=None, clip_s=None)


class Expecter:
    def __init__(self, ledger: Ledger, conductor: Conductor) -> None:
        self._ledger = ledger
        self._conductor = conductor

    def expectations(self) -> dict[str, Expectation]:
        """By job id, for every job that waits or is on a device."""
        found: dict[str, Expectation] = {}
        for place in self._conductor.turns.places():
            found.update(self._of_device(*place))
        return found

    def _of_device(self, host: str, device: str) -> dict[str, Expectation]:
        slot = self._conductor.turns.slot(host, device)
        holder = self._ledger.jobs.get(slot.holder)
        run_s = self._cost(holder, holder.rung).run_s(is_loaded=holder.is_warm) if holder else None
        found = forecast.expectations(
            self._ledger.candidates(host, device),
            self._cost_of,
            loaded_lane=slot.loaded_lane,
            busy_s=self._busy_s(slot, holder, run_s),
            lanes_alive=self._conductor.presence.lanes_alive(host, device),
        )
        return found if holder is None else {**found, holder.spec.job_id: Expectation(wait_s=0.0, run_s=run_s)}

    def _busy_s(self, slot: Slot, holder: Entry | None, run_s: float | None) -> float | None:
        if slot.drained_reason:
            return None  # until a person undrains it
        if holder is None:
            return 0.0
        elapsed_s = transitions.elapsed_s(holder.began, clock.stamp()) if holder.began else 0.0
        return forecast.left_s(run_s, elapsed_s)

    def _cost_of(self, candidate: Candidate) -> Cost:
        entry = candidate.entry
        facts = self._conductor.telemetry.known_facts(entry.spec.host, entry.spec.device)
        gpu_name = facts.gpu_name if facts is not None else None
        first_rung = self._ledger.lessons.winning_rungs.first_rung(entry.spec, gpu_name)
        return self._cost(entry, transitions.next_rung(entry, first_rung))

    def _cost(self, entry: Entry, rung: int) -> Cost:
        if entry.spec.judged is not None:
            job_s = self._ledger.judge_times.job_s(entry.spec.lane_id, entry.spec.judged.purpose)
            return Cost(load_s=0.0, clip_s=job_s)  # as measured, now and then with a load in it
        estimate = self._estimate(entry.spec, rung)
        return UNKNOWN if estimate is None else Cost(load_s=estimate.load_s, clip_s=estimate.clip_s)

    def _estimate(self, spec: JobSpec, rung: int) -> Estimate | None:
        """As known now where the device is, else as planned; None for a retry of a lane file newer than the plan."""
        facts = self._conductor.telemetry.known_facts(spec.host, spec.device)
        place = Placement(host=spec.host, device=spec.device, has_worker=True, facts=facts)
        if facts is not None and (known := self._ledger.lessons.of_job(spec, rung, place)) is not None:
            return known
        for plan in self._ledger.sweep(spec.sweep_id).record.lanes:
            if (plan.lane_id, plan.lane_digest) == (spec.lane_id, spec.lane_digest):
                return next((estimate for estimate in plan.estimates if estimate.rung == rung), None)
        return None
