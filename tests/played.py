"""The scheduler as its own process, and a worker (with its host's telemetry) played by hand over the real contract."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from screentest import lanes, objects, subjects, wire
from screentest.client import Client
from screentest.errors import Unavailable
from screentest.judges import load_judge
from screentest.kit import clock
from screentest.kit.bus import Append, Bus, Delivery
from screentest.records import (
    Alive,
    Artifact,
    ArtifactKind,
    AttemptEnded,
    ClipFacts,
    Command,
    CommandReply,
    Dispatch,
    JobEvent,
    JobState,
    JudgementFacts,
    Outcome,
    Process,
    Progress,
    Proof,
    ProofKind,
    ProofRequest,
    Started,
    UrlReply,
    UrlRequest,
)

if TYPE_CHECKING:
    from tests.conftest import Depot

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "a-token-for-tests"


class Scheduler:
    """The real process; a test may kill and restart it."""

    def __init__(self, environment: dict[str, str], port: int, log: Path) -> None:
        self.environment = environment
        self._log = log
        self.address = f"127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "screentest_scheduler.main"], env=self.environment, stderr=log
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.list_sweeps(limit=1)
        except Unavailable:
            return False
        return True

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=40)

    def client(self) -> Client:
        return Client.connect(self.address, token=TOKEN)


@dataclass
class HandWorker:
    """One lane's worker and the telemetry of its host, answering by the contract and working as the test says."""

    bus: Bus
    depot: Depot
    lane_id: str
    runner: Process | None = None
    is_clean: bool = True
    job_id: str | None = None
    commands: list[object] = field(default_factory=list)
    reply: CommandReply = field(default_factory=lambda: CommandReply(done=True))

    async def start(self) -> None:
        await self.bus.answer(subjects.command("local", "cpu-0", self.lane_id), self._on_command)

    async def beat(self) -> None:
        while True:
            await self.bus.publish(subjects.alive("local", "cpu-0", self.lane_id), wire.encode(self.alive()))
            await asyncio.sleep(0.2)

    def alive(self) -> Alive:
        return Alive(
            host="local",
            device="cpu-0",
            lane_id=self.lane_id,
            lane_digest=self._digest(),
            worker_id="hand",
            runner=self.runner,
            job_id=self.job_id,
            stamp=clock.stamp(),
        )

    def _digest(self) -> str:
        judge_file = ROOT / "deploy" / "judges" / f"{self.lane_id}.toml"
        if judge_file.exists():
            return load_judge(judge_file).digest
        return lanes.lane_digest(lanes.load_lane(ROOT / "deploy" / "lanes" / f"{self.lane_id}.toml"))

    async def _on_command(self, _subject: str, payload: bytes) -> bytes:
        command = wire.decode(payload, Command)
        self.commands.append(command.body)
        return wire.encode(self.reply)

    async def take(self, timeout_s: float = 10.0) -> tuple[Delivery, Dispatch] | None:
        puller = await self.bus.lane_puller("local", "cpu-0", self.lane_id)
        delivery = await puller.next(timeout_s)
        return (delivery, wire.decode(delivery.payload, Dispatch)) if delivery else None

    async def begin(self, dispatch: Dispatch) -> int:
        proof = await self._proof()
        body = Started(runner=Process(pid=1, start_ticks=1), proof=proof, warm=False)
        return await self.append(dispatch, JobState.RUNNING, body, dispatch.admitted_sequence)

    async def finish(self, dispatch: Dispatch, sequence: int, outcome: Outcome) -> int:
        return await self.append(dispatch, JobState.ENDED, AttemptEnded(outcome=outcome), sequence)

    async def append(self, dispatch: Dispatch, state: JobState, body: object, expected: int) -> int:
        spec = dispatch.spec
        event = JobEvent(
            event_id=clock.new_event_id(),
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=dispatch.attempt,
            state=state,
            stamp=clock.stamp(),
            body=body,  # type: ignore[arg-type]
        )
        subject = subjects.job_events(spec.sweep_id, spec.lane_id, spec.job_id)
        return await self.bus.append(
            Append(subject=subject, payload=wire.encode(event), expected_sequence=expected, event_id=event.event_id)
        )

    async def report(self, dispatch: Dispatch, phase: str) -> None:
        spec = dispatch.spec
        progress = Progress(
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=dispatch.attempt,
            phase=phase,
            stamp=clock.stamp(),
        )
        await self.bus.publish(subjects.progress(spec.sweep_id, spec.lane_id, spec.job_id), wire.encode(progress))

    async def upload(
        self, dispatch: Dispatch, data: bytes = b"not really a clip", flags: tuple[str, ...] = ()
    ) -> Outcome:
        """Puts a clip where the scheduler signs for, and says so."""
        clip = await self._put(dispatch, ArtifactKind.CLIP, data)
        facts = ClipFacts(
            codec="h264",
            pixel_format="yuv420p",
            frames=25,
            width_px=96,
            height_px=64,
            fps=24,
            duration_s=25 / 24,
            flags=flags,
        )
        return Outcome(failure_class=None, artifacts=(clip,), clip=facts)

    async def judge(self, dispatch: Dispatch, presence: float | None = None) -> Outcome:
        """Puts a judgement where the scheduler signs for, and says so."""
        data = json.dumps({"of": dispatch.spec.job_id}).encode()
        judgement = await self._put(dispatch, ArtifactKind.JUDGEMENT, data)
        facts = JudgementFacts(tier="b", method="embedding", presence=presence)
        return Outcome(failure_class=None, artifacts=(judgement,), judgement=facts)

    async def _put(self, dispatch: Dispatch, kind: ArtifactKind, data: bytes) -> Artifact:
        sha256 = hashlib.sha256(data).hexdigest()
        reply = await self.url(dispatch, kind, sha256, len(data))
        assert not reply.error
        await self.depot.store().put(reply.key, data, objects.content_type(kind))
        return Artifact(
            kind=kind, key=reply.key, sha256=sha256, size_bytes=len(data), content_type=objects.content_type(kind)
        )

    async def url(self, dispatch: Dispatch, kind: ArtifactKind, sha256: str = "", size_bytes: int = 0) -> UrlReply:
        """What the scheduler answers to a wish for an object of this job."""
        spec = dispatch.spec
        request = UrlRequest(
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=dispatch.attempt,
            kind=kind,
            sha256=sha256,
            size_bytes=size_bytes,
        )
        payload = await self.bus.request(subjects.depot_url(self.lane_id), wire.encode(request), timeout_s=5)
        return wire.decode(payload, UrlReply)

    async def _proof(self) -> Proof:
        payload = await self.bus.request(
            subjects.proof("local", "cpu-0"), wire.encode(ProofRequest(kind=ProofKind.HANDOVER)), timeout_s=2
        )
        return wire.decode(payload, Proof)
