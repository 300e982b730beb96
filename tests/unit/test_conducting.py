"""What a conductor does with many jobs at once when one of them is in trouble."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from screentest.errors import NotPossibleNow
from screentest_scheduler.conducting import Conductor
from screentest_scheduler.journal import AT_ONCE
from screentest_scheduler.ledger import Ledger
from tests.made_judgings import STRANGER


def conductor() -> Conductor:
    """With a ledger of its own; nothing below talks to a broker or a depot."""
    return Conductor(None, None, Ledger(), None, (), stranger=STRANGER, ack_wait_s=30.0, drain_after_s=60.0)  # type: ignore[arg-type]


async def test_job_that_changes_too_fast_leaves_no_other_uncancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sweep of ten thousand the tail lags behind by seconds: one refusal left all later jobs computing."""
    whole, cancelled = conductor(), []
    subject = whole.canceller

    async def cancel(job_id: str, by: str) -> bool:
        if job_id == "job-3":
            raise NotPossibleNow(f"job {job_id} changes too fast to cancel it; try again")
        cancelled.append(job_id)
        return True

    async def nothing_is_missing(sweep_id: str) -> None:
        pass

    job_ids = [f"job-{number}" for number in range(3 * AT_ONCE)]
    jobs = [SimpleNamespace(spec=SimpleNamespace(job_id=job_id)) for job_id in job_ids]
    monkeypatch.setattr(subject, "cancel", cancel)
    monkeypatch.setattr(subject, "_journal", SimpleNamespace(write_missing_jobs=nothing_is_missing))
    monkeypatch.setattr(subject, "_judging", SimpleNamespace(write=nothing_is_missing))
    monkeypatch.setattr(subject._ledger, "sweep_jobs", lambda sweep_id: jobs)
    monkeypatch.setattr(subject._ledger, "judge_jobs", lambda sweep_id: [])
    with pytest.raises(NotPossibleNow, match="job-3"):
        await subject.cancel_sweep("stillness-20260508t232959z", "ada")
    assert set(job_ids) - set(cancelled) == {"job-3"}


async def test_job_whose_sweep_has_left_ends_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second scheduler may archive a sweep while this one passes over its jobs."""
    subject = conductor()

    class Gone:
        spec = type("Spec", (), {"job_id": "job-of-a-sweep-that-left"})

    monkeypatch.setattr(subject._ledger, "active_jobs", lambda: [Gone])
    monkeypatch.setattr(subject.turns, "places", lambda: ())
    async with asyncio.TaskGroup() as group:
        await subject._pass(group)
