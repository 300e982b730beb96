"""What follows when all jobs of a sweep have ended: leftovers are withdrawn, devices proven, the sweep settled."""

from __future__ import annotations

import asyncio

import structlog

from screentest import subjects
from screentest.errors import ScreentestError
from screentest.kit.bus import Bus
from screentest.records import DeviceProof, Proof, ProofKind, SweepSettled
from screentest_scheduler import followups
from screentest_scheduler.journal import Journal
from screentest_scheduler.ledger import Ledger, SweepState
from screentest_scheduler.presence import Presence
from screentest_scheduler.telemetry import Telemetry

log = structlog.get_logger()

FINAL_PROOF_TRIES = 20
FINAL_PROOF_EVERY_S = 0.5


class Settler:
    """Settles each sweep once per set of jobs; nobody waits for it."""

    def __init__(self, bus: Bus, ledger: Ledger, journal: Journal, presence: Presence, telemetry: Telemetry) -> None:
        self._bus = bus
        self._ledger = ledger
        self._journal = journal
        self._presence = presence
        self._telemetry = telemetry
        self._settling: set[str] = set()

    def due(self) -> list[SweepState]:
        """The sweeps to settle now, each told once: the caller settles them."""
        found = [sweep for sweep in self._ledger.sweeps.values() if self._must_settle(sweep)]
        self._settling.update(sweep.record.sweep_id for sweep in found)
        return found

    def _must_settle(self, sweep: SweepState) -> bool:
        sweep_id = sweep.record.sweep_id
        if sweep_id in self._settling or len(sweep.job_ids) != len(sweep.expected):
            return False
        if sweep.is_settled:
            return False
        return followups.must_settle(self._ledger.sweep_jobs(sweep_id), sweep.settled)

    async def settle(self, sweep: SweepState) -> None:
        sweep_id = sweep.record.sweep_id
        try:
            entries = self._ledger.sweep_jobs(sweep_id)
            await self._sweep_up(sweep)
            proofs = [
                DeviceProof(host=host, device=device, proof=await self._final_proof(host, device))
                for host, device in followups.devices(entries)
            ]
            settled = SweepSettled(jobs=len(entries), clips=followups.clips(entries), proofs=tuple(proofs))
            await self._journal.append_sweep(sweep, settled)
        except ScreentestError as error:
            log.warning("settle_interrupted", sweep=sweep_id, error=str(error))
        finally:
            self._settling.discard(sweep_id)

    async def _sweep_up(self, sweep: SweepState) -> None:
        """Withdraws dispatch messages whose worker died between its last event and its acknowledgement."""
        mine = set(sweep.job_ids)
        for subject in await self._bus.dispatched():
            if subjects.dispatched_job(subject) in mine:
                await self._bus.withdraw(subject)

    async def _final_proof(self, host: str, device: str) -> Proof | None:
        """How the device is left: held by one registered runner that is warm, or free.

        A runner that has just been retired takes a moment to be gone; the last answer stands, clean or not.
        """
        proof: Proof | None = None
        for _ in range(FINAL_PROOF_TRIES):
            proof = await self.proof_as_left(host, device)
            if proof is not None and proof.clean:
                break
            await asyncio.sleep(FINAL_PROOF_EVERY_S)
        return proof

    async def proof_as_left(self, host: str, device: str) -> Proof | None:
        """The proof that fits who is there: CONTINUE for the runner that holds the device, HANDOVER when none does."""
        runners = self._presence.runners(host, device)
        kind = ProofKind.CONTINUE if runners else ProofKind.HANDOVER
        return await self._telemetry.proof(host, device, kind, runners[0].runner if runners else None)
