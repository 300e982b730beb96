"""`screentest-worker`: one lane on one device."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

import screentest_runner
from screentest import judges, lanes, subjects
from screentest.errors import NotPossibleNow
from screentest.judges import JudgeLane
from screentest.kit import clock, health, lifecycle, logging
from screentest.kit.bus import Bus
from screentest.kit.metrics import Metrics
from screentest.lanes import Lane
from screentest.measured import load_measured
from screentest.records import Alive
from screentest_worker import inputs, metrics, processes
from screentest_worker.attempt import Turns
from screentest_worker.clips import ClipMaking
from screentest_worker.commands import Commands
from screentest_worker.consume import Consumer
from screentest_worker.facts import Place
from screentest_worker.finish import Finisher
from screentest_worker.generation import Generation
from screentest_worker.heartbeat import Heartbeat
from screentest_worker.inputs import Inputs
from screentest_worker.judging import Judging
from screentest_worker.ledger import Ledger
from screentest_worker.runner import RunnerSlot
from screentest_worker.settings import WorkerSettings
from screentest_worker.spool import Spool
from screentest_worker.supervisor import Supervisor, Surroundings
from screentest_worker.telemetry import Telemetry
from screentest_worker.upload import Depot
from screentest_worker.work import Work

log = structlog.get_logger()

# What is under way may end by itself for this long after SIGTERM; later its message comes again.
STOP_GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """The places of one worker below the state directory; workers of other lanes and devices have their own."""

    scratch: Path
    spool: Path
    logs: Path

    @classmethod
    def of(cls, state_dir: Path, device: str, lane_id: str) -> Folders:
        name = f"{device}-{lane_id}"
        base = state_dir.absolute()
        return cls(scratch=base / "scratch" / name, spool=base / "spool" / name, logs=base / "logs" / name)


def main() -> None:
    lifecycle.run(serve)


async def serve(stopping: asyncio.Event) -> None:
    """Runs the worker until ``stopping`` is set."""
    settings = WorkerSettings()  # type: ignore[call-arg]  # the environment fills it
    logging.configure("worker", log_format=settings.log_format, level=settings.log_level)
    lane = load_lane(settings.lane_file)
    structlog.contextvars.bind_contextvars(lane=lane.id, device=settings.device)
    folders = Folders.of(settings.state_dir, settings.device, lane.id)
    with alone(folders.spool, lane.id, settings.device):
        processes.become_subreaper()
        tag = hashlib.sha256(str(folders.spool).encode()).hexdigest()[:32]
        leftovers = processes.kill_leftovers(tag)
        clear_scratch(folders.scratch)
        log.info("worker_started", leftovers_killed=leftovers)
        bus = await Bus.connect(
            settings.nats_url,
            name=f"worker {lane.id}",
            user=settings.nats_user,
            password=settings.nats_password(),
        )
        try:
            await Worker(settings, lane, folders, tag, bus).run(stopping)
        finally:
            await bus.close()


def load_lane(path: Path) -> Lane | JudgeLane:
    """A model's file or a judge's: its `task` says which. Raises BadRequest that names what is wrong with it."""
    try:
        is_judge = tomllib.loads(path.read_text(encoding="utf-8")).get("task") == "judge"
    except (OSError, ValueError):
        is_judge = False  # whoever reads it strictly says what is wrong
    return judges.load_judge(path) if is_judge else lanes.load_lane(path)


@contextlib.contextmanager
def alone(folder: Path, lane_id: str, device: str) -> Iterator[None]:
    """Two workers of one lane, device and state directory would deliver each other's results."""
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode().strip() or "unknown"
            raise NotPossibleNow(
                f"lane {lane_id} on {device} has a worker already (pid {pid}); stop it, or give this one another "
                "SCREENTEST_STATE_DIR"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def clear_scratch(folder: Path) -> None:
    """What attempts that are lost have left. What many jobs want and the children's home are worth keeping."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
        elif path.name not in {"home", *inputs.KEPT_FOLDERS}:
            shutil.rmtree(path, ignore_errors=True)


def _work_of(
    lane: Lane | JudgeLane, settings: WorkerSettings, given: Inputs, supervisor: Supervisor, spool: Spool
) -> Work:
    """The only place that asks whether a lane makes clips or judges them."""
    place = Place(
        models_dir=settings.models_dir.absolute(),
        # A link must stay a link: it tells Python which environment it belongs to.
        env_python=settings.env_python.absolute(),
        measured=load_measured(settings.measured_folder),
    )
    if isinstance(lane, JudgeLane):
        return Judging(judge=lane, place=place, endpoint=settings.endpoint, inputs=given, spool=spool)
    making = ClipMaking(supervisor, spool)
    return Generation(lane=lane, place=place, cache_dir=settings.cache_dir.absolute(), inputs=given, making=making)


class Worker:
    """Puts the parts together and runs their loops."""

    def __init__(self, settings: WorkerSettings, lane: Lane | JudgeLane, folders: Folders, tag: str, bus: Bus) -> None:
        self._settings = settings
        self._bus = bus
        self._worker_id = uuid.uuid4().hex
        self._heartbeat = Heartbeat(bus)
        runner_path = Path(screentest_runner.__file__).parent.parent
        self._supervisor = Supervisor(
            Surroundings(
                env_python=settings.env_python.absolute(),
                runner_path=runner_path,
                home=folders.scratch / "home",
                log_dir=folders.logs,
                tag=tag,
            )
        )
        self._telemetry = Telemetry(bus, settings.host, settings.device)
        self._slot = RunnerSlot(
            self._supervisor, settings.lock_dir.absolute(), settings.stop_grace_s, self._heartbeat.change
        )
        self._metrics, spool = Metrics(), Spool(folders.spool)
        self._metrics.at_scrape(metrics.reader(self._snapshot, spool))
        ledger, depot = Ledger(bus), Depot(bus)
        self._lane_work = _work_of(lane, settings, Inputs(depot, folders.scratch), self._supervisor, spool)
        turns = Turns(
            work=self._lane_work,
            device=settings.device,
            scratch=folders.scratch,
            not_proven_s=settings.not_proven_s,
            cancel_grace_s=settings.cancel_grace_s,
            ledger=ledger,
            telemetry=self._telemetry,
            slot=self._slot,
            supervisor=self._supervisor,
            spool=spool,
        )
        self._consumer = Consumer(
            bus=bus,
            host=settings.host,
            device=settings.device,
            lane_id=self._lane_work.lane_id,
            idle_s=settings.idle_s,
            renew_s=settings.renew_s,
            ledger=ledger,
            turns=turns,
            finisher=Finisher(work=self._lane_work, spool=spool, depot=depot, ledger=ledger),
            spool=spool,
            slot=self._slot,
            changed=self._heartbeat.change,
        )
        self._commands = Commands(
            work=self._lane_work,
            consumer=self._consumer,
            slot=self._slot,
            telemetry=self._telemetry,
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves until told to stop, gives what is under way a moment, then leaves no process behind."""
        subject = subjects.command(self._settings.host, self._settings.device, self._lane_work.lane_id)
        await self._bus.answer(subject, self._commands.answer)
        ended = asyncio.Event()
        try:
            with self._metrics.served(self._settings.metrics_address):
                await self._work(stopping, ended)
        finally:
            await self._slot.retire("the worker stops")
            await self._supervisor.end_all()
            log.info("worker_stopped")

    async def _work(self, stopping: asyncio.Event, ended: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._end_after(stopping, ended))
            group.create_task(
                lifecycle.run_until(
                    ended,
                    self._consumer.run(),
                    self._consumer.watch_reconnects(),
                    self._slot.watch(),
                    self._heartbeat.run(self._snapshot),
                    health.show(self._settings.health_file, lambda: self._bus.is_connected),
                )
            )

    async def _end_after(self, stopping: asyncio.Event, ended: asyncio.Event) -> None:
        await stopping.wait()
        self._consumer.stop_pulling()
        if not await self._consumer.empty(STOP_GRACE_S):
            log.warning("attempts_left_behind", jobs=self._consumer.finishing)
        ended.set()

    def _snapshot(self) -> Alive:
        runner = self._slot.current
        held = runner if runner is not None and runner.is_open else None
        busy = self._consumer.on_device
        return Alive(
            host=self._settings.host,
            device=self._settings.device,
            lane_id=self._lane_work.lane_id,
            lane_digest=self._lane_work.lane_digest,
            worker_id=self._worker_id,
            runner=held.process if held is not None else None,
            runner_rung=held.key.rung if held is not None and held.key is not None else None,
            runner_weights=held.key.weights if held is not None and held.key is not None else None,
            job_id=busy.dispatch.spec.job_id if busy is not None else None,
            attempt=busy.dispatch.attempt if busy is not None else None,
            finishing_job_ids=self._consumer.finishing,
            stamp=clock.stamp(),
        )


if __name__ == "__main__":
    main()
