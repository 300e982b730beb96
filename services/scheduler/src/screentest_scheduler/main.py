"""Starts the scheduler: streams, replay, consumers, the API, then passes until stopped."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from screentest import lanes
from screentest.addresses import is_loopback
from screentest.judges import JudgeLane, load_judges
from screentest.kit import clock, health, lifecycle, logging
from screentest.kit.archive import Archive
from screentest.kit.bus import Bus
from screentest.kit.config import DepotSettings, read_secret
from screentest.kit.metrics import Metrics
from screentest.kit.store import Store
from screentest.measured import load_measured
from screentest_scheduler import exposure, metrics
from screentest_scheduler.archiver import Archiver
from screentest_scheduler.conducting import Conductor
from screentest_scheduler.depot import Depot
from screentest_scheduler.grpc_api import SchedulerApi, Server
from screentest_scheduler.journal import Journal
from screentest_scheduler.judging import Judges
from screentest_scheduler.ledger import Ledger
from screentest_scheduler.lessons import Lessons
from screentest_scheduler.people import People
from screentest_scheduler.retention import Retention
from screentest_scheduler.rubrics import Rubrics
from screentest_scheduler.settings import SchedulerSettings
from screentest_scheduler.submitting import Submitter
from screentest_scheduler.views import Views

log = structlog.get_logger()


def main() -> None:
    lifecycle.run(serve)


async def serve(stopping: asyncio.Event) -> None:
    settings, depot_settings = SchedulerSettings(), DepotSettings()
    logging.configure("scheduler", log_format=settings.log_format, level=settings.log_level)
    catalogue, judges = lanes.load_lanes(settings.lanes_dir), load_judges(settings.judge_files)
    bus = await Bus.connect(
        settings.nats_url, name="scheduler", user=settings.nats_user, password=settings.nats_password()
    )
    try:
        await bus.ensure_streams(vitals_kept_s=settings.vitals_kept_s)
        store = _store(depot_settings)
        await store.ensure_bucket()
        await _serve(stopping, settings, catalogue, judges, bus, store)
    finally:
        await bus.close()


async def _serve(
    stopping: asyncio.Event,
    settings: SchedulerSettings,
    catalogue: dict[str, lanes.Lane],
    judge_lanes: dict[str, JudgeLane],
    bus: Bus,
    store: Store,
) -> None:
    places = settings.places()
    numbers = Metrics()
    attempts = metrics.AttemptNumbers(numbers, clock.stamp().at, (*catalogue, *judge_lanes))
    ledger = Ledger(Lessons(catalogue, load_measured(settings.measured_dir)), attempt_ended=attempts.ended)
    journal = Journal(bus, ledger)
    await journal.replay()
    rubrics = Rubrics(store)
    conductor = Conductor(
        bus,
        store,
        ledger,
        journal,
        places,
        stranger=await rubrics.stranger(),
        ack_wait_s=settings.ack_wait_s,
        drain_after_s=settings.drain_after_s,
    )
    await conductor.dispatcher.make_consumers(places, (*catalogue, *judge_lanes))
    await conductor.presence.listen(bus)
    await conductor.faults.listen(bus)
    archiver = Archiver(
        bus,
        ledger,
        journal,
        Archive(store),
        after=timedelta(seconds=settings.archive_after_s),
        kept=timedelta(seconds=settings.archive_kept_s),
        every_s=settings.archive_every_s,
        has_worker=lambda spec: conductor.presence.worker(spec.host, spec.device, spec.lane_id) is not None,
    )
    retention = Retention(
        store,
        ledger,
        journal,
        archiver.is_archived,
        kept=None if settings.clips_kept_s is None else timedelta(seconds=settings.clips_kept_s),
        every_s=settings.archive_every_s,
    )
    depot = Depot(store, ledger, journal)
    await depot.listen(bus)
    judges = Judges(
        ledger,
        journal,
        conductor.judging,
        rubrics,
        conductor.presence,
        judge_lanes,
        conductor.turns.places,
        conductor.canceller.cancel,
    )
    api = SchedulerApi(
        bus=bus,
        store=store,
        ledger=ledger,
        conductor=conductor,
        submitter=Submitter(
            bus, ledger, journal, conductor.presence, store, catalogue, judges, places[0], conductor.telemetry
        ),
        views=Views(ledger, journal, conductor, catalogue, judge_lanes, places[0]),
        depot=depot,
        judges=judges,
        rubrics=rubrics,
        people=People(ledger, journal, rubrics),
        default_host=settings.host,
        heartbeat_s=settings.heartbeat_s,
    )
    token = read_secret(settings.grpc_token_file).get_secret_value()
    server = Server(
        api,
        address=settings.grpc_address,
        token=token,
        with_reflection=settings.grpc_reflection and is_loopback(settings.grpc_address),
        credentials=exposure.credentials(
            settings.grpc_address, settings.grpc_tls_cert_file, settings.grpc_tls_key_file, has_token=bool(token)
        ),
    )
    await server.start()
    numbers.at_scrape(lambda: metrics.read(ledger, conductor, catalogue))
    log.info("scheduler_started", address=settings.grpc_address, lanes=len(catalogue), devices=settings.devices)
    try:
        with numbers.served(settings.metrics_address):
            sign_of_life = health.show(settings.health_file, lambda: bus.is_connected)
            await lifecycle.run_until(
                stopping, conductor.follow(), conductor.run(), archiver.run(), retention.run(), sign_of_life
            )
    finally:
        await server.stop()


def _store(settings: DepotSettings) -> Store:
    return Store(
        url=settings.url,
        bucket=settings.bucket,
        access_key=settings.access_key,
        secret_key=settings.secret_key(),
        public_url=settings.public_url,
        region=settings.region,
    )


if __name__ == "__main__":
    main()
