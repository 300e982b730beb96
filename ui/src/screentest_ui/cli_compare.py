"""diff, replay: two sweeps side by side, and one job again from its manifest."""

from __future__ import annotations

import json as json_format
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from screentest.client import Client
from screentest.errors import BadRequest, NotFound, ScreentestError
from screentest.records import ArtifactKind, Job, SweepSpec, Task
from screentest_ui import comparing, comparison_page, printing, reportfetch
from screentest_ui.cli_sweeps import Json, shown_path, wait_for_end
from screentest_ui.comparing import Budget, Cell, Comparison, Pair
from screentest_ui.connection import connect
from screentest_ui.likeness import Likeness, likeness

BROKEN = DIFFERENT = 1
COLUMNS = ("Model", "Outcome", "Latency", "Energy", "Score", "Pictures", "What differs")

Out = Annotated[Path, typer.Option(help="Folder of all fetched reports.")]


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A sweep.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The sweep to hold against it.")],
    max_latency_ratio: Annotated[float | None, typer.Option(help="Most that B's median latency may be of A's.")] = None,
    max_energy_ratio: Annotated[float | None, typer.Option(help="Most that B's median energy may be of A's.")] = None,
    max_score_drop: Annotated[
        float | None, typer.Option(help="Most points a cell may lose; overlapping intervals lose none.")
    ] = None,
    min_survival: Annotated[int | None, typer.Option(help="Least cells of B that completed.")] = None,
    out: Out = Path("out"),
    json: Json = False,
) -> int | None:
    """Hold one sweep against another: survival, latency, energy, scores, pictures, and what differed.

    Exit 1 when a limit that you give is broken.
    """
    budget = Budget(
        max_latency_ratio=max_latency_ratio,
        max_energy_ratio=max_energy_ratio,
        max_score_drop=max_score_drop,
        min_survival=min_survival,
    )
    with connect() as client:
        folders = [_fetched(client, sweep_id, out, quiet=json) for sweep_id in (a, b)]
        reports = [_report(folder) for folder in folders]
        manifests = _manifests(client, reports)
    found = comparing.compare(reports[0], reports[1], _likenesses(folders, reports), manifests)
    broken = budget.broken(found)
    page = comparison_page.write(found, broken, dict(zip((a, b), reports, strict=True)), out / f"diff-{a}-{b}")
    if json:
        printing.as_json({**comparison_page.plain(found), "broken": list(broken), "page": str(page)})
    else:
        _show(found, broken, page)
    return BROKEN if broken else None


def replay(
    job_id: Annotated[
        str, typer.Argument(metavar="JOB", help="A completed job, as `screentest status --all` lists it.")
    ],
    json: Json = False,
) -> int | None:
    """Run one job again as a sweep of its own, and say whether the same clip comes out.

    Exit 1 unless every frame is the same.
    """
    with connect() as client, tempfile.TemporaryDirectory(prefix="screentest-replay-") as folder:
        before = client.get_job(job_id)
        _must_have_clip(before)
        manifests = {job_id: _manifest(client, job_id, Path(folder))}
        _tell_changed_lane(client, before, quiet=json)
        sweep = client.submit_sweep(_again(client, before), request_id=str(uuid.uuid4())).sweep
        sweep_id = sweep.record.sweep_id
        if not json:
            printing.say(f"sweep: {sweep_id}")
        wait_for_end(client, sweep_id, quiet=json)
        (after,) = client.list_jobs(sweep_id)
        _must_have_clip(after)
        manifests[after.spec.job_id] = _manifest(client, after.spec.job_id, Path(folder))
        clips = [Path(folder) / f"{job.spec.job_id}.mp4" for job in (before, after)]
        for job, path in zip((before, after), clips, strict=True):
            client.fetch_artifact(path, kind=ArtifactKind.CLIP, job_id=job.spec.job_id)
        alike = likeness(*clips)
    causes = comparing.differences(*manifests.values())
    if json:
        told = {"job_id": job_id, "again": after.spec.job_id, "sweep_id": sweep_id, "exact": alike.exact}
        printing.as_json({**told, "ssim": alike.ssim, "why": alike.why, "differences": list(causes)})
    else:
        printing.say(f"{alike.text}; {'; '.join(causes) if causes else 'nothing differs in the manifests'}")
    return None if alike.exact else DIFFERENT


# ---- what is compared


def _fetched(client: Client, sweep_id: str, out: Path, *, quiet: bool) -> Path:
    fetched = reportfetch.fetch(client, sweep_id, out, wait_for_final=True)
    if not quiet:
        for problem in fetched.problems:
            printing.note(problem)
    return fetched.index.parent


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json_format.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def _likenesses(folders: list[Path], reports: list[dict[str, Any]]) -> dict[Cell, Likeness]:
    """Of the cells that have a clip in both."""
    files = [
        {
            (row["lane_id"], row["prompt_index"], row["seed"]): row["clip"]["file"]
            for row in report["rows"]
            if row["clip"]
        }
        for report in reports
    ]
    both = files[0].keys() & files[1].keys()
    return {cell: likeness(folders[0] / files[0][cell], folders[1] / files[1][cell]) for cell in both}


def _manifests(client: Client, reports: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By job id, of what completed; a manifest that cannot be had leaves its cell without causes."""
    found: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="screentest-diff-") as folder:
        for report in reports:
            for job_id in comparing.cells(report).values():
                try:
                    found[job_id] = _manifest(client, job_id, Path(folder))
                except ScreentestError as error:
                    printing.note(f"{job_id}: what differs is unknown: {error}")
    return found


def _manifest(client: Client, job_id: str, folder: Path) -> Mapping[str, Any]:
    path = folder / f"{job_id}.json"
    client.fetch_artifact(path, kind=ArtifactKind.MANIFEST, job_id=job_id)
    found: dict[str, Any] = json_format.loads(path.read_text(encoding="utf-8"))
    return found


# ---- what is run again


def _must_have_clip(job: Job) -> None:
    if job.spec.task is Task.JUDGE:
        raise BadRequest(f"{job.spec.job_id} is a judgement; `screentest judge` repeats it")
    if job.clip is None:
        raise BadRequest(f"{job.spec.job_id} is {job.state.value} and has no clip: {job.cause or 'wait for its end'}")


def _again(client: Client, job: Job) -> SweepSpec:
    """What was asked of this one cell. Everything else comes from the lane file, whose digest is compared."""
    asked = client.get_sweep(job.spec.sweep_id).record.spec
    return replace(
        asked,
        title=f"Replay of {job.spec.lane_title}, seed {job.spec.seed}",
        prompts=(job.spec.prompt,),
        lane_ids=(job.spec.lane_id,),
        seeds=(job.spec.seed,),
        rubrics=(),
        expires_at=None,
        paused=False,
    )


def _tell_changed_lane(client: Client, job: Job, *, quiet: bool) -> None:
    lane = next((lane for lane in client.list_lanes() if lane.lane_id == job.spec.lane_id), None)
    if lane is None:
        raise NotFound(f"lane {job.spec.lane_id} is not in this stack's catalogue any more")
    if lane.lane_digest != job.spec.lane_digest and not quiet:
        printing.note(f"the file of lane {lane.lane_id} has changed since: the clip will be made by the new one")


# ---- lines


def _show(found: Comparison, broken: tuple[str, ...], page: Path) -> None:
    printing.print_table(COLUMNS, map(_line, found.pairs))
    before, after = found.survival
    printing.say(f"survival: {before} -> {after} of {len(found.pairs)} cells in both")
    for name, models in ((found.a, found.only_a), (found.b, found.only_b)):
        if models:
            printing.say(f"only in {name}: {', '.join(models)}")
    for line in broken:
        printing.say(f"over the limit: {line}")
    printing.say(f"page: {shown_path(page)}")


def _line(pair: Pair) -> tuple[str, ...]:
    return (
        pair.model,
        pair.outcome,
        comparison_page.change(pair.a.latency_s, pair.b.latency_s, pair.latency_ratio, "s"),
        comparison_page.change(pair.a.energy_wh, pair.b.energy_wh, pair.energy_ratio, "Wh"),
        comparison_page.score_change(pair),
        pair.likeness.text if pair.likeness else "no two clips",
        comparison_page.causes_text(pair),
    )
