"""The reporter service: follows the events and keeps every sweep's report in the depot up to date."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from screentest import subjects
from screentest.errors import ScreentestError, Unavailable
from screentest.kit import health, lifecycle, logging
from screentest.kit.bus import Bus
from screentest.kit.config import DepotSettings, ServiceSettings
from screentest.kit.store import Store
from screentest_reporter.ledger import Ledger
from screentest_reporter.pictures import PictureMaker
from screentest_reporter.publish import Publisher
from screentest_reporter.sweeps import SweepState

log = structlog.get_logger()

FILTERS = ("events.>", "sweeps.>")
RETRY_AFTER_S = 2.0
# The decoder's child holds 50 MiB; starting it anew takes half a second.
REST_AFTER_S = 30.0


async def catch_up(bus: Bus, ledger: Ledger) -> int:
    """Folds everything that is stored and returns the sequence to follow from. Waits for broker and streams."""
    next_sequence = 1
    while True:
        try:
            async with contextlib.aclosing(
                bus.read(subjects.EVENTS_STREAM, FILTERS, start_sequence=next_sequence)
            ) as history:
                async for stored in history:
                    await ledger.take(stored)
                    next_sequence = stored.sequence + 1
            return next_sequence
        except Unavailable as error:
            log.warning("waiting_for_events", error=str(error))
            await asyncio.sleep(RETRY_AFTER_S)


async def follow(bus: Bus, ledger: Ledger, next_sequence: int) -> None:
    """Folds events as they come; goes on behind the last one when a sweep could not be read again."""
    while True:
        try:
            async with contextlib.aclosing(
                bus.read(subjects.EVENTS_STREAM, FILTERS, start_sequence=next_sequence, follow=True)
            ) as events:
                async for stored in events:
                    await ledger.take(stored)
                    next_sequence = stored.sequence + 1
        except Unavailable as error:
            log.warning("following_interrupted", error=str(error))
            await asyncio.sleep(RETRY_AFTER_S)


async def publish_forever(ledger: Ledger, publisher: Publisher) -> None:
    """One sweep after the other, whichever is due; an error of one never holds up the others for long."""
    loop = asyncio.get_running_loop()
    while True:
        ledger.changed.clear()
        snapshot, wait_s = ledger.due(loop.time())
        if snapshot is not None:
            await publish_one(ledger, publisher, snapshot)
            continue
        try:
            async with asyncio.timeout(REST_AFTER_S if wait_s is None else wait_s):
                await ledger.changed.wait()
        except TimeoutError:
            if wait_s is None:
                await publisher.rest()


async def publish_one(ledger: Ledger, publisher: Publisher, snapshot: SweepState) -> None:
    loop = asyncio.get_running_loop()
    if snapshot.record is None:
        log.error("sweep_without_record", sweep=snapshot.sweep_id, events=len(snapshot.jobs))
        return
    try:
        with structlog.contextvars.bound_contextvars(sweep=snapshot.sweep_id):
            await publisher.publish(snapshot)
    except ScreentestError as error:
        log.warning("report_postponed", sweep=snapshot.sweep_id, error=str(error))
        ledger.postpone(snapshot, loop.time() + RETRY_AFTER_S)
    except Exception:  # a report that cannot be written must not cost the other sweeps theirs
        log.exception("report_failed", sweep=snapshot.sweep_id)
    else:
        if ledger.published(snapshot, loop.time()):
            publisher.forget(snapshot.sweep_id)


async def serve(settings: ServiceSettings, depot: DepotSettings, stopping: asyncio.Event) -> None:
    store = Store(
        url=depot.url,
        bucket=depot.bucket,
        access_key=depot.access_key,
        secret_key=depot.secret_key(),
        public_url=depot.public_url,
        region=depot.region,
    )
    bus = await Bus.connect(
        settings.nats_url, name="reporter", user=settings.nats_user, password=settings.nats_password()
    )
    pictures = PictureMaker()

    async def work() -> None:
        ledger = Ledger(bus)
        next_sequence = await catch_up(bus, ledger)
        log.info("reporter_ready", next_sequence=next_sequence)
        async with asyncio.TaskGroup() as group:
            group.create_task(follow(bus, ledger, next_sequence))
            group.create_task(health.show(settings.health_file, lambda: bus.is_connected))
            group.create_task(publish_forever(ledger, Publisher(bus, store, pictures)))

    try:
        await lifecycle.run_until(stopping, work())
    finally:
        await pictures.close()
        await bus.close()


def main() -> None:
    async def service(stopping: asyncio.Event) -> None:
        settings, depot = ServiceSettings(), DepotSettings()
        logging.configure("reporter", log_format=settings.log_format, level=settings.log_level)
        await serve(settings, depot, stopping)

    lifecycle.run(service)
