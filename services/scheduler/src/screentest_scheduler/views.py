"""What the API shows: ledger, heartbeats and history put together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from screentest import lanes
from screentest.errors import BadRequest, NotFound
from screentest.judges import JudgeLane
from screentest.records import DeviceView, Job, JobState, LaneView, Sweep, Task
from screentest_scheduler import judge_planning
from screentest_scheduler.conducting import Conductor
from screentest_scheduler.expecting import Expecter
from screentest_scheduler.forecast import Expectation
from screentest_scheduler.journal import Journal
from screentest_scheduler.ledger import Ledger
from screentest_scheduler.transitions import Entry
from screentest_scheduler.watching import Cursor

MAX_PAGE = 500
DEFAULT_PAGE = 100
UNEXPECTED = Expectation(wait_s=None, run_s=None)


class Views:
    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        conductor: Conductor,
        catalogue: Mapping[str, lanes.Lane],
        judges: Mapping[str, JudgeLane],
        default_place: tuple[str, str],
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._conductor = conductor
        self._expecter = Expecter(ledger, conductor)
        self._catalogue = catalogue
        self._judges = judges
        self._default_place = default_place

    def sweep(self, sweep_id: str, epoch: str) -> Sweep:
        cursor = str(Cursor(epoch=epoch, sequence=self._ledger.sequence))
        archived = self._ledger.archived.get(sweep_id)
        if archived is not None:
            body = archived.body
            return Sweep(
                record=body.record, counts=body.counts, over=True, settled=body.settled, cursor=cursor, archived=True
            )
        state = self._ledger.sweep(sweep_id)
        over = self._ledger.is_over(sweep_id)
        settled = state.settled if over and state.is_settled else None
        return Sweep(
            record=state.record,
            counts=self._ledger.counts(sweep_id),
            over=over,
            settled=settled,
            cursor=cursor,
            scoring=self._conductor.judging.scoring(state),
            paused=state.is_paused,
            priority=state.priority,
        )

    def sweeps(self, epoch: str, page_size: int, token: str) -> tuple[list[Sweep], str]:
        """Newest first; those that only the archive has among them."""
        submitted_at = self._ledger.submitted_at()
        ids = sorted(submitted_at, key=lambda item: (-submitted_at[item].timestamp(), item))
        page, next_token = page_of(ids, page_size, token)
        return [self.sweep(sweep_id, epoch) for sweep_id in page], next_token

    async def job(self, job_id: str) -> Job:
        found = await self.jobs([self._ledger.job(job_id)])
        if not found:
            raise NotFound(f"job {job_id} has left the event stream; its archive is in the depot")
        return found[0]

    async def jobs(self, entries: Sequence[Entry]) -> list[Job]:
        found = await self._journal.views(entries)
        open_jobs = any(not job.state.is_terminal for job in found)
        expected = self._expecter.expectations() if open_jobs else {}
        return [self._live(job, expected.get(job.spec.job_id, UNEXPECTED)) for job in found]

    async def sweep_jobs(
        self, sweep_id: str, page_size: int, token: str, *, judging: bool = False
    ) -> tuple[list[Job], str]:
        """``judging``: its judge jobs instead of those that make its clips."""
        found = self._ledger.judge_jobs(sweep_id) if judging else self._ledger.sweep_jobs(sweep_id)
        entries = {entry.spec.job_id: entry for entry in found}
        page, next_token = page_of(list(entries), page_size, token)
        return await self.jobs([entries[job_id] for job_id in page]), next_token

    def lane_views(self) -> list[LaneView]:
        lanes = [self._lane(lane) for lane in self._catalogue.values()]
        return lanes + [self._judge(judge) for judge in self._judges.values()]

    async def devices(self) -> list[DeviceView]:
        return list(await asyncio.gather(*(self.device(*place) for place in self._conductor.turns.places())))

    async def device(self, host: str, device: str) -> DeviceView:
        slot = self._conductor.turns.slot(host, device)
        runners = self._conductor.presence.runners(host, device)
        proof = await self._conductor.settler.proof_as_left(host, device)
        return DeviceView(
            host=host,
            device=device,
            drained=bool(slot.drained_reason),
            drained_reason=slot.drained_reason,
            proof=proof,
            job_id=slot.holder,
            warm_lane_id=runners[0].lane_id if runners else "",
        )

    def _live(self, job: Job, expected: Expectation) -> Job:
        """With what only memory knows: progress of a running job, the reason of a waiting one."""
        if job.state.is_terminal:
            return job
        entry = self._ledger.job(job.spec.job_id)
        progress = None
        if job.state is JobState.RUNNING:
            progress = self._conductor.presence.progress(job.spec.job_id, entry.attempt)
        # The history was read before: an attempt that has ended since does not wait in what is shown of it.
        may_wait = job.state in {JobState.QUEUED, JobState.ENDED}
        return replace(
            job,
            waits_for=self._conductor.turns.waits_for(entry) if may_wait else "",
            progress=progress,
            expected_wait_s=expected.wait_s,
            expected_run_s=expected.run_s,
        )

    def _lane(self, lane: lanes.Lane) -> LaneView:
        return self._view(lane, lanes.lane_digest(lane), self._default_place)

    def _judge(self, judge: JudgeLane) -> LaneView:
        host, device = self._default_place
        beside = device if judge.device == "gpu" else judge_planning.CPU
        return replace(self._view(judge, judge.digest, (host, beside)), tier=judge.tier)

    def _view(self, lane: lanes.Lane | JudgeLane, digest: str, place: tuple[str, str]) -> LaneView:
        """``place``: where it would work while no worker says where it does."""
        presence = self._conductor.presence
        host, device = presence.place_of(lane.id) or place
        alive = presence.worker(host, device, lane.id)
        waiting = (entry for entry in self._ledger.open_jobs() if entry.may_be_admitted)
        model = lane.model
        return LaneView(
            lane_id=lane.id,
            lane_title=lane.title,
            task=Task(lane.task),
            env=lane.env,
            lane_digest=digest,
            repo=model.repo if model else "",
            licence=(model.licence or "unknown") if model else "none needed",
            gated=model.gated if model else False,
            parameters_b=float(model.parameters_b) if model else None,
            worker_alive=alive is not None,
            runner_warm=alive is not None and alive.runner is not None,
            host=host,
            device=device,
            queued=sum(entry.spec.lane_id == lane.id for entry in waiting),
        )


def page_of(ids: Sequence[str], page_size: int, token: str) -> tuple[Sequence[str], str]:
    """(ids after the one that the token names, the next token). BadRequest for a page size or token that is none."""
    if page_size < 0 or page_size > MAX_PAGE:
        raise BadRequest(f"page_size {page_size} is not between 0 and {MAX_PAGE}")
    start = 0
    if token:
        if token not in ids:
            raise BadRequest(f"page_token {token!r} is not of this list; start again without one")
        start = ids.index(token) + 1
    page = ids[start : start + (page_size or DEFAULT_PAGE)]
    return page, page[-1] if start + len(page) < len(ids) and page else ""
