"""What the scheduler asks telemetry: the proof of a device, and what kind of device it is."""

from __future__ import annotations

from screentest import subjects, wire
from screentest.errors import Unavailable
from screentest.kit.bus import Bus
from screentest.records import DeviceFacts, Process, Proof, ProofKind, ProofRequest

# It answers in milliseconds: a slow answer is no answer.
ANSWER_WITHIN_S = 2.0


class Telemetry:
    """Every device of every host. None instead of an answer: unknown is not clean."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._known: dict[tuple[str, str], DeviceFacts] = {}

    async def proof(self, host: str, device: str, kind: ProofKind, runner: Process | None) -> Proof | None:
        """``runner``: for CONTINUE, the one process that may hold the lock."""
        payload = await self._ask(subjects.proof(host, device), wire.encode(ProofRequest(kind=kind, runner=runner)))
        return None if payload is None else wire.decode(payload, Proof)

    async def facts(self, host: str, device: str) -> DeviceFacts | None:
        """GPU name, kind of memory and how much of it is free, read now."""
        payload = await self._ask(subjects.device_facts(host, device), b"")
        if payload is None:
            return None
        self._known[host, device] = wire.decode(payload, DeviceFacts)
        return self._known[host, device]

    def known_facts(self, host: str, device: str) -> DeviceFacts | None:
        """As last read; None before that."""
        return self._known.get((host, device))

    async def _ask(self, subject: str, payload: bytes) -> bytes | None:
        try:
            return await self._bus.request(subject, payload, timeout_s=ANSWER_WITHIN_S)
        except Unavailable:
            return None
