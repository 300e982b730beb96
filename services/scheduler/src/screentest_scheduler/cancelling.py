"""Cancels one job, or all of a sweep: the order is an event, and its worker is told by whoever follows the job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from screentest.errors import NotPossibleNow
from screentest.kit.bus import WrongLastSequence
from screentest.records import CancelRequested, JobState
from screentest_scheduler import transitions
from screentest_scheduler.journal import Journal, batched
from screentest_scheduler.judging import JudgeJobs
from screentest_scheduler.ledger import Ledger

CANCEL_TRIES = 50


class Canceller:
    """Its work goes on when the caller has given up."""

    def __init__(self, ledger: Ledger, journal: Journal, judging: JudgeJobs, wake: Callable[[], None]) -> None:
        self._ledger = ledger
        self._journal = journal
        self._judging = judging
        self._wake = wake
        self._cancelling: set[asyncio.Future[int]] = set()

    async def cancel(self, job_id: str, by: str) -> bool:
        """Writes CancelRequested; False when the job is terminal or already being cancelled."""
        for _ in range(CANCEL_TRIES):
            entry = self._ledger.job(job_id)
            if entry.state.is_terminal or entry.cancel_by:
                return False
            if entry.state is JobState.ENDED and transitions.terminal(entry) is not None:
                return False  # the work is done; its terminal event is being written
            started = entry.state is JobState.RUNNING
            try:
                await self._journal.append_job(entry, entry.state, CancelRequested(by=by, started=started))
            except WrongLastSequence:
                await asyncio.sleep(0.05)  # the worker wrote first; the tail brings it
                continue
            self._wake()
            return True
        raise NotPossibleNow(f"job {job_id} changes too fast to cancel it; try again")

    async def cancel_sweep(self, sweep_id: str, by: str) -> int:
        """``cancel`` of all its jobs, also of those that are not written yet, of a broken submit or to judge a clip.

        Returns for how many it was new.

        It goes on when its caller has given up: half a sweep would go on computing.
        """
        working = asyncio.ensure_future(self._cancel_sweep(sweep_id, by))
        self._cancelling.add(working)
        working.add_done_callback(self._cancelling.discard)
        return await asyncio.shield(working)

    async def _cancel_sweep(self, sweep_id: str, by: str) -> int:
        """Raises the first error after all of them were tried."""
        await self._journal.write_missing_jobs(sweep_id)
        await self._judging.write(sweep_id)
        entries = (*self._ledger.sweep_jobs(sweep_id), *self._ledger.judge_jobs(sweep_id))
        job_ids = [entry.spec.job_id for entry in entries]
        written, errors = 0, []
        for some in batched(job_ids):
            for result in await asyncio.gather(*(self.cancel(job_id, by) for job_id in some), return_exceptions=True):
                if isinstance(result, BaseException):
                    errors.append(result)
                else:
                    written += result
        if errors:
            raise errors[0]
        return written
