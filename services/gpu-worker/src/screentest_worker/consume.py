"""Pulls attempts and decides what each delivery means. The job's last event decides, never the delivery itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import assert_never

import structlog

from screentest import wire
from screentest.errors import BadRequest, Unavailable
from screentest.kit import logging
from screentest.kit.bus import Bus, Delivery, LanePuller
from screentest.records import (
    AttemptEnded,
    CancelRequested,
    Dispatch,
    JobEvent,
    Outcome,
    Started,
)
from screentest_worker import outcome, spool
from screentest_worker.attempt import Turns
from screentest_worker.finish import Finisher
from screentest_worker.hand import Dropped, InHand
from screentest_worker.ledger import LastEvent, Ledger, stop_reason
from screentest_worker.phases import ProgressFeed
from screentest_worker.runner import RunnerSlot
from screentest_worker.spool import Spool

log = structlog.get_logger()

PULL_S = 5.0
AWAY_PAUSE_S = 1.0


class Action(StrEnum):
    """What one delivery asks of this worker."""

    START = "start"
    ADOPT = "adopt"  # the attempt is in hand: only the delivery is new
    DELIVER = "deliver"  # its result waits in the spool
    END_LOST = "end_lost"  # it had started, and nothing of it is left
    END_CANCELLED = "end_cancelled"  # likewise, and a person had asked for its end
    ACKNOWLEDGE = "acknowledge"  # its history goes on without this attempt
    LEAVE = "leave"  # its history is not readable far enough yet: let it come again


def decide(last: JobEvent | None, attempt: int, *, in_hand: bool, spooled: bool) -> Action:
    """What a delivery of ``attempt`` means, given the job's last event.

    in_hand: this process works on that very attempt. spooled: its finished result is on disk.
    """
    if last is None or last.state.is_terminal or last.attempt > attempt:
        return Action.ACKNOWLEDGE
    if last.attempt < attempt:
        return Action.LEAVE
    if in_hand:
        return Action.ADOPT
    match last.body:
        case AttemptEnded() | CancelRequested(started=False):  # the scheduler ends a job that had not started
            return Action.ACKNOWLEDGE
        case CancelRequested():
            return Action.END_CANCELLED
        case Started():
            return Action.DELIVER if spooled else Action.END_LOST
        case _:
            return Action.START


class Consumer:
    """Holds the attempts of one lane: at most one on the device, others behind it encoding or uploading."""

    def __init__(
        self,
        *,
        bus: Bus,
        host: str,
        device: str,
        lane_id: str,
        idle_s: float,
        renew_s: float,
        ledger: Ledger,
        turns: Turns,
        finisher: Finisher,
        spool: Spool,
        slot: RunnerSlot,
        changed: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._host = host
        self._device = device
        self._lane_id = lane_id
        self._idle_s = idle_s
        self._renew_s = renew_s
        self._ledger = ledger
        self._turns = turns
        self._finisher = finisher
        self._spool = spool
        self._slot = slot
        self._changed = changed
        self._hands: dict[tuple[str, int], InHand] = {}
        self._on_device: InHand | None = None
        self._is_pulling = True
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def on_device(self) -> InHand | None:
        """The attempt that uses the device now."""
        return self._on_device

    @property
    def finishing(self) -> tuple[str, ...]:
        """Job ids that encode or upload."""
        return tuple(job_id for (job_id, _), hand in self._hands.items() if hand is not self._on_device)

    def find(self, job_id: str, attempt: int) -> InHand | None:
        return self._hands.get((job_id, attempt))

    async def run(self) -> None:
        """Pulls until told to stop or cancelled. What goes wrong with one attempt ends that attempt, not the loop."""
        async with asyncio.TaskGroup() as group:
            await self._deliver_leftovers(group)
            puller: LanePuller | None = None
            while self._is_pulling:
                try:
                    puller = puller or await self._bus.lane_puller(self._host, self._device, self._lane_id)
                    delivery = await puller.next(PULL_S)
                except Unavailable as error:
                    log.warning("pull_failed", error=str(error))
                    await asyncio.sleep(AWAY_PAUSE_S)
                    continue
                if not self._is_pulling:
                    break  # what came meanwhile comes again, to another worker
                if delivery is None:
                    await self._retire_when_idle()
                else:
                    await self._take_safely(delivery, group)

    def stop_pulling(self) -> None:
        """Nothing new is begun from now on."""
        self._is_pulling = False

    async def empty(self, within_s: float) -> bool:
        """Whether nothing is in hand (any more) within the time."""
        try:
            async with asyncio.timeout(within_s):
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True

    async def watch_reconnects(self) -> None:
        """After every reconnect each attempt's history may have moved on unheard."""
        reconnected = self._bus.reconnected()
        while True:
            await reconnected.wait()
            reconnected.clear()
            for hand in [hand for hand in self._hands.values() if hand.has_started]:
                last = await self._ledger.last(hand.dispatch)
                reason = stop_reason(last.event if last else None, hand.dispatch.attempt)
                if reason is not None:
                    hand.request_stop(reason)

    # ---- one delivery

    async def _take_safely(self, delivery: Delivery, group: asyncio.TaskGroup) -> None:
        try:
            await self._take(delivery, group)
        except Exception as error:  # a defect of ours must not end the lane: the delivery comes again
            log.exception("delivery_failed", subject=delivery.subject, error=str(error))
            await asyncio.sleep(AWAY_PAUSE_S)

    async def _take(self, delivery: Delivery, group: asyncio.TaskGroup) -> None:
        try:
            dispatch = wire.decode(delivery.payload, Dispatch)
        except BadRequest as error:
            # It can never be understood; the scheduler finds the job without a message and decides.
            log.error("dispatch_unreadable", subject=delivery.subject, error=str(error))
            await delivery.ack()
            return
        with logging.about(dispatch.spec, dispatch.attempt):
            await self._decide_and_act(dispatch, delivery, group)

    async def _decide_and_act(self, dispatch: Dispatch, delivery: Delivery, group: asyncio.TaskGroup) -> None:
        hand = self._hands.get((dispatch.spec.job_id, dispatch.attempt))
        last = await self._ledger.last(dispatch)
        ended = self._spool.ended(dispatch) if hand is None else None
        action = decide(
            last.event if last else None, dispatch.attempt, in_hand=hand is not None, spooled=ended is not None
        )
        log.info("delivery_decided", action=action.value)
        await self._act(action, dispatch, delivery, last, ended, group)

    async def _act(
        self,
        action: Action,
        dispatch: Dispatch,
        delivery: Delivery,
        last: LastEvent | None,
        ended: spool.Ended | None,
        group: asyncio.TaskGroup,
    ) -> None:
        match action:
            case Action.START:
                await self._start(self._hold(dispatch, delivery), group)
            case Action.ADOPT:
                self._hands[(dispatch.spec.job_id, dispatch.attempt)].delivery = delivery
            case Action.DELIVER:
                assert ended is not None
                self._deliver(ended, delivery, group)
            case Action.END_LOST | Action.END_CANCELLED:
                assert last is not None
                phase = self._spool.interrupted_phase(dispatch)
                ending = outcome.lost(phase) if action is Action.END_LOST else outcome.cancelled(phase or "")
                self._end_lost(dispatch, ending, last.sequence, delivery, group)
            case Action.ACKNOWLEDGE:
                await self._finisher.acknowledge(self._feedless(dispatch, delivery))
                self._spool.remove(dispatch)
            case Action.LEAVE:
                pass
            case _:
                assert_never(action)

    async def _start(self, hand: InHand, group: asyncio.TaskGroup) -> None:
        """The attempt's turn on the device; what follows goes on beside the next pull."""
        renewal = group.create_task(self._renew(hand))
        self._on_device = hand
        self._changed()
        try:
            end = await self._turns.run(hand)
        except Exception as error:  # a defect of ours must not end the lane: it comes again
            log.exception("turn_failed", error=str(error))
            await self._slot.retire("an attempt ended in a defect of the worker")
            self._turns.remove_result(hand)
            self._let_go(hand, renewal)
            return
        finally:
            self._on_device = None
            self._changed()
        if isinstance(end, Dropped):
            await self._finisher.acknowledge(hand)
            self._spool.remove(hand.dispatch)
            self._let_go(hand, renewal)
            return
        if end.outcome.failure_class is None:
            # Only now: whoever hears it may ask this worker to retire at once.
            await hand.feed.phase("decoded")
        group.create_task(self._see_through(hand, self._finisher.finish(hand, end), renewal))

    def _deliver(self, ended: spool.Ended, delivery: Delivery | None, group: asyncio.TaskGroup) -> None:
        """A result from the spool."""
        hand = self._hold(ended.dispatch, delivery)
        hand.has_started = True
        hand.sequence = ended.expected_sequence
        renewal = group.create_task(self._renew(hand))
        group.create_task(self._see_through(hand, self._finisher.deliver(hand, ended), renewal))

    def _end_lost(
        self,
        dispatch: Dispatch,
        ending: Outcome,
        sequence: int,
        delivery: Delivery | None,
        group: asyncio.TaskGroup,
    ) -> None:
        """The end of an attempt whose worker died. What that worker left running was killed when this one started."""
        log.warning("attempt_lost", cause=ending.cause)
        self._deliver(spool.Ended(dispatch=dispatch, outcome=ending, expected_sequence=sequence), delivery, group)

    async def _deliver_leftovers(self, group: asyncio.TaskGroup) -> None:
        """What an earlier process of this worker left is delivered at once, not when its message comes again."""
        ended, interrupted = self._spool.left()
        for item in ended:
            with logging.about(item.dispatch.spec, item.dispatch.attempt):
                self._deliver(item, None, group)
        for lost in interrupted:
            with logging.about(lost.dispatch.spec, lost.dispatch.attempt):
                await self._end_interrupted(lost, group)

    async def _end_interrupted(self, lost: spool.Interrupted, group: asyncio.TaskGroup) -> None:
        last = await self._ledger.last(lost.dispatch)
        action = decide(last.event if last else None, lost.dispatch.attempt, in_hand=False, spooled=False)
        if action is Action.END_LOST and last is not None:
            self._end_lost(lost.dispatch, outcome.lost(lost.phase), last.sequence, None, group)
        elif action is Action.END_CANCELLED and last is not None:
            self._end_lost(lost.dispatch, outcome.cancelled(lost.phase or ""), last.sequence, None, group)
        else:
            self._spool.remove(lost.dispatch)

    # ---- what is in hand

    def _feedless(self, dispatch: Dispatch, delivery: Delivery | None) -> InHand:
        return InHand(dispatch, delivery, ProgressFeed(self._bus, dispatch))

    def _hold(self, dispatch: Dispatch, delivery: Delivery | None) -> InHand:
        hand = self._feedless(dispatch, delivery)
        self._hands[hand.key] = hand
        self._emptied.clear()
        return hand

    def _let_go(self, hand: InHand, renewal: asyncio.Task[None]) -> None:
        renewal.cancel()
        self._hands.pop(hand.key, None)
        if not self._hands:
            self._emptied.set()
        self._changed()

    async def _see_through(
        self, hand: InHand, work: Coroutine[object, object, None], renewal: asyncio.Task[None]
    ) -> None:
        """A finishing attempt to its end; a defect there leaves the delivery to come again."""
        try:
            await work
        except Exception as error:  # as above
            log.exception("finish_failed", error=str(error))
        finally:
            self._let_go(hand, renewal)

    async def _renew(self, hand: InHand) -> None:
        """Tells the broker that we are at it, until we let go of the attempt."""
        while True:
            await asyncio.sleep(self._renew_s)
            if hand.delivery is None:
                continue
            try:
                await hand.delivery.renew()
            except Unavailable as error:
                log.warning("renewal_failed", error=str(error))

    async def _retire_when_idle(self) -> None:
        runner = self._slot.current
        if runner is not None and time.monotonic() - runner.used_at > self._idle_s:
            await self._slot.retire("idle")
