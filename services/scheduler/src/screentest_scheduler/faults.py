"""Drains a device for what telemetry reports of it: an XID that needs a person, or the loss of the GPU."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from screentest import subjects, wire
from screentest.errors import ScreentestError
from screentest.kit.bus import Bus
from screentest.records import CommandReply, DeviceFault, Drained, Proof
from screentest_scheduler import admission
from screentest_scheduler.journal import Journal
from screentest_scheduler.ledger import Ledger

log = structlog.get_logger()


class Faults:
    """A fault is one drain: telemetry may tell it twice, and repeats it in its proofs after a person has looked."""

    def __init__(self, ledger: Ledger, journal: Journal, wake: Callable[[], None]) -> None:
        self._ledger = ledger
        self._journal = journal
        self._wake = wake

    async def listen(self, bus: Bus) -> None:
        await bus.answer(subjects.device_fault("*", "*"), self._answer)

    async def take(self, fault: DeviceFault, proof: Proof | None = None) -> bool:
        """Whether the device was drained for it now."""
        device = self._ledger.device(fault.host, fault.device)
        if not admission.is_news(fault, device.fault, device.undrained):
            return False
        await self._journal.append_control(
            fault.host, fault.device, Drained(reason=fault.cause, proof=proof, fault=fault)
        )
        self._wake()
        return True

    async def _answer(self, _subject: str, payload: bytes) -> bytes:
        fault = wire.decode(payload, DeviceFault)
        try:
            await self.take(fault)
        except ScreentestError as error:  # telemetry tells it again
            log.warning("fault_not_written", device=fault.device, cause=fault.cause, error=str(error))
            return wire.encode(CommandReply(done=False, detail=str(error)))
        return wire.encode(CommandReply(done=True))
