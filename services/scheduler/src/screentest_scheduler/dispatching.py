"""What the scheduler tells workers: one message per attempt, and orders that are said again until they are followed."""

from __future__ import annotations

from collections.abc import Iterable

from screentest import subjects, wire
from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.records import (
    CancelAttempt,
    Command,
    CommandReply,
    Dispatch,
    EndAttempt,
    Prepare,
    Retire,
)
from screentest_scheduler.transitions import Entry

REDISPATCH_EVERY_S = 10.0
ORDER_EVERY_S = 2.0
# The worker's stop ladder takes at most this long.
RETIRE_TIMEOUT_S = 45.0


class Dispatcher:
    """Remembers only what it said when, so that it does not say it too often; a restart may say things twice."""

    def __init__(self, bus: Bus, *, ack_wait_s: float) -> None:
        self._bus = bus
        self._ack_wait_s = ack_wait_s
        self._consumers: set[tuple[str, str, str]] = set()
        self._dispatched_ns: dict[str, int] = {}
        self._ordered_ns: dict[tuple[str, type[CancelAttempt | EndAttempt]], int] = {}

    async def make_consumers(self, places: Iterable[tuple[str, str]], lane_ids: Iterable[str]) -> None:
        """The queue of every lane on every device, so that workers find theirs before the first job."""
        lane_ids = tuple(lane_ids)
        for host, device in places:
            for lane_id in lane_ids:
                await self._make_consumer(host, device, lane_id)

    async def dispatch(self, entry: Entry) -> None:
        spec = entry.spec
        self._dispatched_ns[spec.job_id] = clock.boottime_ns()
        # A worker on a device that nobody configured here has no queue before its first job.
        await self._make_consumer(spec.host, spec.device, spec.lane_id)
        dispatch = Dispatch(spec=spec, attempt=entry.attempt, rung=entry.rung, admitted_sequence=entry.sequence)
        subject = subjects.dispatch(spec.host, spec.device, spec.lane_id, spec.job_id, entry.attempt)
        await self._bus.dispatch(subject, wire.encode(dispatch))

    async def dispatch_again(self, entry: Entry) -> None:
        """Puts a lost message back, at most every REDISPATCH_EVERY_S; the broker drops what is still there."""
        if _is_due(self._dispatched_ns.get(entry.spec.job_id), REDISPATCH_EVERY_S):
            await self.dispatch(entry)

    async def withdraw(self, entry: Entry) -> None:
        spec = entry.spec
        await self._bus.withdraw(subjects.dispatch(spec.host, spec.device, spec.lane_id, spec.job_id, entry.attempt))

    async def order(self, entry: Entry, body: CancelAttempt | EndAttempt) -> None:
        """At most every ORDER_EVERY_S; nobody waits for an answer, the attempt's end is one."""
        spec, key = entry.spec, (entry.spec.job_id, type(body))
        if _is_due(self._ordered_ns.get(key), ORDER_EVERY_S):
            self._ordered_ns[key] = clock.boottime_ns()
            subject = subjects.command(spec.host, spec.device, spec.lane_id)
            await self._bus.publish(subject, wire.encode(Command(body=body)))

    async def prepare(self, place: tuple[str, str], lane_id: str) -> None:
        """The lane's worker may start its interpreter and imports; it takes nothing of the device."""
        await self._bus.publish(subjects.command(*place, lane_id), wire.encode(Command(body=Prepare())))

    async def retire(self, place: tuple[str, str], lane_id: str, reason: str) -> CommandReply:
        """The lane's worker ends its runner, and answers when nothing of it is left.

        Raises Unavailable when it does not answer within RETIRE_TIMEOUT_S.
        """
        command = wire.encode(Command(body=Retire(reason=reason)))
        payload = await self._bus.request(subjects.command(*place, lane_id), command, timeout_s=RETIRE_TIMEOUT_S)
        return wire.decode(payload, CommandReply)

    def forget(self, job_id: str) -> None:
        self._dispatched_ns.pop(job_id, None)
        for body in (CancelAttempt, EndAttempt):
            self._ordered_ns.pop((job_id, body), None)

    async def _make_consumer(self, host: str, device: str, lane_id: str) -> None:
        if (host, device, lane_id) not in self._consumers:
            await self._bus.ensure_lane_consumer(host, device, lane_id, ack_wait_s=self._ack_wait_s)
            self._consumers.add((host, device, lane_id))


def _is_due(said_ns: int | None, every_s: float) -> bool:
    return said_ns is None or clock.boottime_ns() - said_ns >= every_s * 1e9
