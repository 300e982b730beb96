"""What this worker asks telemetry: facts of the device, registration of a runner, proof that the device is ours."""

from __future__ import annotations

from screentest import subjects, wire
from screentest.errors import Unavailable
from screentest.kit.bus import Bus
from screentest.records import CommandReply, DeviceFacts, Process, Proof, ProofKind, ProofRequest

# It answers in milliseconds; a slow answer is no answer, and no answer is not a proof.
ANSWER_WITHIN_S = 2.0


class Telemetry:
    """One device of one host. Every call raises Unavailable when telemetry does not answer."""

    def __init__(self, bus: Bus, host: str, device: str) -> None:
        self._bus = bus
        self._host = host
        self._device = device
        self._facts: DeviceFacts | None = None

    async def facts(self) -> DeviceFacts:
        """Read now; also the new value of ``known_facts``."""
        reply = await self._ask(subjects.device_facts(self._host, self._device), b"")
        self._facts = wire.decode(reply, DeviceFacts)
        return self._facts

    @property
    def known_facts(self) -> DeviceFacts | None:
        """The last facts read, None before the first answer."""
        return self._facts

    async def register(self, runner: Process) -> None:
        """Before the runner opens the device: from then on telemetry counts it as ours."""
        reply = await self._ask(subjects.register_runner(self._host, self._device), wire.encode(runner))
        answer = wire.decode(reply, CommandReply)
        if not answer.done:
            raise Unavailable(f"telemetry did not register runner {runner.pid}: {answer.detail}")

    async def proof(self, kind: ProofKind, runner: Process | None = None) -> Proof:
        """``runner``: for CONTINUE, the one process that may hold the lock."""
        request = wire.encode(ProofRequest(kind=kind, runner=runner))
        return wire.decode(await self._ask(subjects.proof(self._host, self._device), request), Proof)

    async def _ask(self, subject: str, payload: bytes) -> bytes:
        try:
            return await self._bus.request(subject, payload, timeout_s=ANSWER_WITHIN_S)
        except Unavailable as error:
            raise Unavailable(f"telemetry does not answer on {subject}; start it with `screentest up`") from error


def explain(proof: Proof) -> str:
    """Why a proof is not clean, with who holds the device."""
    holders = ", ".join(f"pid {holder.pid} ({holder.command[:80]})" for holder in proof.lock_holders)
    reason = proof.reason or "telemetry gave no reason"
    return (
        f"{reason}; the lock is held by {holders}"
        if holders and str(proof.lock_holders[0].pid) not in reason
        else reason
    )
