"""judge, pause, resume, priority, finding: what a person decides about a sweep after its submit."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from screentest import rubric
from screentest.client import Client, Judging
from screentest.errors import BadRequest
from screentest.records import Counts, Job, JobState, JudgeCost, JudgePurpose, RubricRef, Sweep, Task
from screentest_ui import printing
from screentest_ui.cli_sweeps import Json, SweepId
from screentest_ui.connection import connect
from screentest_ui.panel_queue import judges_waited_for
from screentest_ui.panel_text import UNKNOWN, counted, duration

FAILED = 1
LOOK_EVERY_S = 1.0
# A worker that was killed comes back within some ten seconds where something restarts it.
WITHOUT_WORKER_S = 20.0
_JUDGE = re.compile(r"judge_lane_ids\[(\d+)\]")  # how the scheduler names the judge that is wrong
COST_COLUMNS = ("Judge", "Tier", "Jobs", "Questions", "Time", "Known from")
RESULT_COLUMNS = ("Judge", "Looked at", "State", "Why")


def judge(
    sweep_id: SweepId,
    tier: Annotated[
        str, typer.Option(help="All judges of tier a (pixels), b (embeddings) or c (language model).")
    ] = "",
    judges: Annotated[
        list[str] | None, typer.Option("--judge", help="This judge, as `screentest lanes` lists it; repeatable.")
    ] = None,
    rubrics: Annotated[
        list[Path] | None,
        typer.Option("--rubric", help="By this rubric instead of the sweep's, one per prompt; repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask after the cost is shown.")] = False,
    json: Json = False,
) -> int | None:
    """Judge a sweep's clips, also long after it ended.

    Shows the cost and asks before it begins. Of a tier those judges are asked that can work here, and the others are
    named. Clips are never touched; scores carry judge and rubric. Exit 1 when a judgement failed, or waits for a judge
    that has no worker.
    """
    with connect() as client:
        sweep = client.get_sweep(sweep_id)
        given = tuple(_upload(client, sweep, path) for path in rubrics or ())
        named, of_tier = tuple(dict.fromkeys(judges or ())), _of_tier(client, tier) if tier else ()
        lane_ids, asked = _asked(client, sweep_id, named, of_tier, given)
        if not json:
            printing.print_table(COST_COLUMNS, map(_cost_line, asked.costs))
        if not any(cost.jobs for cost in asked.costs):
            _nothing_to_do(client, sweep_id, as_json=json)
            return None
        if not (yes or json) and not typer.confirm("Begin?", default=True):
            printing.say("nothing was queued")
            return None
        begun = client.judge_sweep(sweep_id, judge_lane_ids=lane_ids, rubrics=given)
        has_ended = follow(client, begun.sweep, quiet=json)
        jobs = client.list_judge_jobs(sweep_id)
    if json:
        printing.as_json({"sweep_id": sweep_id, "costs": begun.costs, "jobs": jobs})
    else:
        _show_failures(sweep_id, jobs)
    return FAILED if not has_ended or any(_has_failed(job) for job in latest(jobs)) else None


def pause(sweep_id: SweepId, json: Json = False) -> None:
    """Start no further job of a sweep; what runs goes on."""
    _paused(sweep_id, paused=True, as_json=json)


def resume(sweep_id: SweepId, json: Json = False) -> None:
    """Go on with a paused sweep."""
    _paused(sweep_id, paused=False, as_json=json)


def priority(
    sweep_id: SweepId,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="Higher runs first; 0 is ordinary.")],
    json: Json = False,
) -> None:
    """Say which sweep's jobs are admitted first."""
    with connect() as client:
        sweep = client.set_priority(sweep_id, number)
    printing.as_json(sweep) if json else printing.say(f"{sweep_id} has priority {sweep.priority}")


def finding(
    sweep_id: SweepId,
    row: Annotated[str, typer.Argument(metavar="ROW", help="A job id, or note:NAME of an operator note.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Your words; empty = back to the original.")],
    json: Json = False,
) -> None:
    """Write a row's finding in your own words; the report keeps both."""
    with connect() as client:
        client.edit_finding(sweep_id, row, text)
    if json:
        printing.as_json({"sweep_id": sweep_id, "row": row, "text": text})
    else:
        printing.say(f"{row}: {'your words stand in the report soon' if text else 'back to the original'}")


# ---- words


def latest(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """The last try of each judgement."""
    retried = {job.spec.retry_of for job in jobs}
    return tuple(job for job in jobs if job.spec.job_id not in retried)


def counts_text(counts: Counts) -> str:
    """``3 of 11 judgements, 1 running, 2 failed``."""
    bad = counts.failed + counts.refused + counts.cancelled
    done = counts.completed + bad
    parts = [f"{done} of {counted(counts.total, 'judgement')}"]
    parts += [f"{counts.running} running"] if counts.running else []
    parts += [f"{bad} failed"] if bad else []
    return ", ".join(parts)


def _of_tier(client: Client, tier: str) -> tuple[str, ...]:
    if tier not in ("a", "b", "c"):
        raise BadRequest(
            f"--tier {tier!r}: use a (pixels), b (embeddings) or c (language model); people rate in the panel"
        )
    found = tuple(lane.lane_id for lane in client.list_lanes() if lane.task is Task.JUDGE and lane.tier == tier)
    if not found:
        raise BadRequest(f"this stack has no judge of tier {tier}; `screentest lanes` lists those it has")
    return found


def _asked(
    client: Client, sweep_id: str, named: Sequence[str], of_tier: Sequence[str], rubrics: Sequence[RubricRef]
) -> tuple[tuple[str, ...], Judging]:
    """The judges that can be asked, and what they would cost. One that was asked for by its name must be able to."""
    lane_ids = tuple(dict.fromkeys((*named, *of_tier)))
    try:
        return lane_ids, client.judge_sweep(sweep_id, judge_lane_ids=lane_ids, rubrics=rubrics, estimate_only=True)
    except BadRequest as error:
        unable = {int(match[1]): item.description for item in error.violations if (match := _JUDGE.match(item.field))}
        able = tuple(lane_id for index, lane_id in enumerate(lane_ids) if index not in unable)
        is_about_tier = unable and len(unable) == len(error.violations) and not set(named) - set(able)
        if not is_about_tier or not able:
            raise
    for why in unable.values():
        printing.note(f"left out: {why}")
    return able, client.judge_sweep(sweep_id, judge_lane_ids=able, rubrics=rubrics, estimate_only=True)


def _upload(client: Client, sweep: Sweep, path: Path) -> RubricRef:
    """The rubric says by its hash which prompt of the sweep it is for."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"rubric {path} cannot be read ({error.strerror}); check the path") from error
    read = rubric.from_json(data.decode(errors="replace"), str(path))
    for index, prompt in enumerate(sweep.record.spec.prompts):
        if read.is_for(prompt):
            return client.upload_rubric(data, file_name=path.name, prompt=prompt, prompt_index=index)
    raise BadRequest(
        f"{path}: is for another prompt than any of {sweep.record.sweep_id}; draft one with `screentest rubric draft`"
    )


def _cost_line(cost: JudgeCost) -> tuple[str, ...]:
    time_text = UNKNOWN if cost.seconds is None else duration(cost.seconds)
    return (cost.lane_id, cost.tier, str(cost.jobs), str(cost.calls), time_text, cost.basis)


def _nothing_to_do(client: Client, sweep_id: str, *, as_json: bool) -> None:
    if as_json:
        printing.as_json({"sweep_id": sweep_id, "costs": [], "jobs": client.list_judge_jobs(sweep_id)})
    else:
        printing.say("everything has been judged by these judges and this rubric already, or there is no clip to judge")


def follow(client: Client, sweep: Sweep, *, quiet: bool) -> bool:
    """Until no judgement is queued or runs: True; or, once only judges without a worker are waited for, which it says:
    False. A Ctrl-C says how to come back, and goes on.
    """
    sweep_id, shown, changed_at = sweep.record.sweep_id, "", time.monotonic()
    try:
        while True:
            scoring = client.get_sweep(sweep_id).scoring
            text = counts_text(scoring.counts) if scoring else ""
            if text != shown:
                if not quiet:
                    printing.note(text)
                shown, changed_at = text, time.monotonic()
            if scoring is not None and not (scoring.counts.queued or scoring.counts.running):
                return True
            if time.monotonic() - changed_at > WITHOUT_WORKER_S:
                changed_at = time.monotonic()
                if _waits_for_judges(client, sweep_id):
                    return False
            time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        printing.note(f"\njudging goes on; `screentest judge {sweep_id}` shows it again, `screentest cancel` ends it")
        raise


def _waits_for_judges(client: Client, sweep_id: str) -> bool:
    """Whether only judges without a worker are left, which it says."""
    waited_for = judges_waited_for(client.list_judge_jobs(sweep_id), client.list_lanes())
    if waited_for:
        printing.note(f"judging waits for a worker of {', '.join(waited_for)}; it goes on when there is one")
    return bool(waited_for)


def _show_failures(sweep_id: str, jobs: Sequence[Job]) -> None:
    failed = [job for job in latest(jobs) if _has_failed(job)]
    if failed:
        printing.print_table(RESULT_COLUMNS, map(_result_line, failed))
    printing.say(f"the scores are in the report: `screentest report {sweep_id}`")


def _has_failed(job: Job) -> bool:
    return job.state.is_terminal and job.state is not JobState.COMPLETED


def _result_line(job: Job) -> tuple[str, ...]:
    return (job.spec.lane_id, subject(job), job.state.value, f"{job.cause} {job.fix}".strip())


def subject(job: Job) -> str:
    """What a judge job looks at, in a word or two."""
    judged = job.spec.judged
    if judged is None:
        return ""
    what = {JudgePurpose.CLIP: "", JudgePurpose.KEYFRAME: "the keyframe", JudgePurpose.CONTROLS: "controls on "}
    return f"{what[judged.purpose]}{judged.job_id if judged.purpose is not JudgePurpose.KEYFRAME else ''}"


def _paused(sweep_id: str, *, paused: bool, as_json: bool) -> None:
    with connect() as client:
        sweep = client.pause_sweep(sweep_id, paused=paused)
    if as_json:
        printing.as_json(sweep)
    else:
        printing.say(f"{sweep_id} {'is paused; what runs goes on' if paused else 'goes on'}")
