"""A case study as JSON, `report.json`: the same rows as the page's, for programs. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from screentest import table
from screentest.records import LanePlan
from screentest_reporter.case_study import CaseStudy
from screentest_reporter.energy_ledger import Entry, Ledger
from screentest_reporter.model_table import ReportRow
from screentest_reporter.narrative import Reading
from screentest_reporter.notes import Note
from screentest_reporter.scores import ClipScore
from screentest_reporter.sweeps import Edit

SCHEMA: Final = "report/1"
# Changes when the same events would give another page: a report of an older renderer is written anew.
RENDERER: Final = "4"


def to_json(study: CaseStudy, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``files``: every other file of the report with sha256 and size, for whoever fetches it."""
    spec = study.record.spec
    return {
        "schema": SCHEMA,
        "renderer": RENDERER,
        "revision": study.revision,
        "final": study.final,
        "published_at": study.published_at.isoformat(),
        "cursor": asdict(study.cursor),
        "sweep": {
            "id": study.record.sweep_id,
            "title": spec.title,
            "prompts": list(spec.prompts),
            "seeds": list(spec.seeds),
            "weights": spec.weights.value,
            "random_weights": spec.weights.is_random,
            "submitted_at": study.record.submitted_at.isoformat(),
            "keyframe_sha256": spec.keyframe.sha256 if spec.keyframe else None,
        },
        "lead": study.lead,
        "headline": {figure.label: figure.value for figure in study.figures},
        "read": [_reading(reading) for reading in study.readings],
        "rows": [_row(row) for row in study.rows],
        "skipped": [asdict(lane) for lane in study.record.skipped],
        "operator_notes": [_note(note) for note in study.notes],
        "vitals": {**asdict(study.vitals_summary), "text": study.vitals_line},
        "energy": _energy(study.ledger),
        "scoring": _scoring(study),
        "machines": [asdict(machine) for machine in study.machines],
        "lanes": [_lane(lane) for lane in study.record.lanes],
        "versions": {version.name: version.version for version in study.versions},
        "closing": study.closing,
        "files": list(files),
    }


def _reading(reading: Reading) -> dict[str, Any]:
    return {"title": reading.title, "sentences": [sentence.text for sentence in reading.sentences]}


def _row(row: ReportRow) -> dict[str, Any]:
    line = row.row
    return {
        "job_id": line.job_id,
        "lane_id": line.lane_id,
        "prompt_index": line.prompt_index,
        "seed": line.seed,
        "model": line.model,
        "task": line.task,
        "status": line.status,
        "latency": table.latency_text(line.latency_s),
        "latency_s": line.latency_s,
        "prompt_match": row.prompt_match,
        "finding": row.finding.text,
        "finding_original": row.finding.original,
        "finding_edit": _edit(row.finding.edit),
        "score": _score(row.score) if row.score else None,
        "random_weights": line.random_weights,
        "failure_class": row.failure_class,
        "cause": row.cause or None,
        "fix": row.fix or None,
        "marks": list(line.footnotes),
        "earlier": [asdict(earlier) for earlier in line.earlier],
        "attempts": row.attempts,
        "rung": line.rung or None,
        "smallest_card_gib": line.smallest_card_gib,
        "peak_memory_by_phase": dict(row.peak_memory_by_phase),
        "steps_done": row.steps_done,
        "step_s": row.step_s,
        "clip": asdict(row.clip) if row.clip else None,
        "clip_facts": asdict(row.clip_facts) if row.clip_facts else None,
        "sheet": row.pictures.sheet,
        "poster": row.pictures.poster,
        "strip": row.pictures.strip,
        "picture_error": row.pictures.error or None,
        "gpu_energy_wh": row.energy_wh,
        "peak_device_memory_bytes": row.peak_device_memory_bytes,
        "peak_host_memory_bytes": row.peak_host_memory_bytes,
        "lane_digest": row.lane_digest,
    }


def _edit(edit: Edit | None) -> dict[str, str] | None:
    return {"by": edit.by, "at": edit.at.isoformat()} if edit else None


def _score(clip: ClipScore) -> dict[str, Any]:
    score, parts = clip.score, clip.score.parts
    return {
        "rubric_sha256": score.rubric_sha256,
        "text": clip.printed,
        "greyed": clip.why_greyed or None,
        "score10": score.score10,
        "low": score.low,
        "high": score.high,
        "confidence": score.confidence,
        "not_scored": score.not_scored or None,
        "badges": list(score.badges),
        "flags": list(score.flags),
        "caps": [asdict(cap) for cap in score.caps],
        "tiers": [asdict(tier) for tier in score.tiers],
        "agreement": score.agreement,
        "flips": list(score.flips),
        "left_out": list(score.left_out),
        "presence": parts.presence if parts else None,
        "story": parts.story if parts else None,
        "order": parts.order if parts else None,
        "camera": parts.camera if parts else None,
        "elements": {e.element_id: e.presence for e in parts.elements} if parts else {},
        "beats": [_beat(beat.n, beat.windows, beat.path_window) for beat in parts.beats] if parts else [],
    }


def _beat(n: int, windows: Sequence[float | None], path_window: int | None) -> dict[str, Any]:
    return {"n": n, "windows": list(windows), "path_window": path_window}


def _note(note: Note) -> dict[str, Any]:
    return {
        "id": note.note_id,
        "topic": note.topic,
        "text": note.text,
        "original": note.original or None,
        "edit": _edit(note.edit),
        "models": list(note.models),
        "job_ids": list(note.job_ids),
    }


def _energy(ledger: Ledger) -> dict[str, Any]:
    """``gpu_wh`` None when an attempt has no number; ``measured_wh`` is then what is known."""
    return {
        "gpu_wh": ledger.total_wh,
        "measured_wh": ledger.measured_wh,
        "failed_wh": ledger.failed_wh,
        "between_jobs_wh": ledger.waiting_wh,
        "unmeasured_attempts": ledger.unmeasured,
        "method": "; ".join(method.text for method in ledger.methods) or None,
        "ledger": [_entry(entry) for entry in ledger.entries],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "job_id": entry.job_id,
        "attempt": entry.attempt,
        "rung": entry.rung,
        "ended_as": entry.ended_as,
        "seconds": entry.seconds,
        "wh": entry.wh,
        "method": entry.method.value if entry.method else None,
        "by_phase": dict(entry.by_phase),
    }


def _scoring(study: CaseStudy) -> dict[str, Any]:
    scores = study.scores
    return {
        "pending": scores.pending,
        "ratings": scores.ratings,
        "not_scored": None if scores.clips else scores.not_scored,
        "judges": [
            {
                "id": judge.judge_id,
                "title": judge.judge_title,
                "controls": {r.control.value: [r.result.value, r.why] for r in judge.verdict.results},
                "why_greyed": judge.verdict.why_greyed or None,
            }
            for judge in scores.judges
        ],
        "ranked": {
            str(prompt_index): [{**asdict(lane), "rank_text": lane.rank_text} for lane in ranked]
            for prompt_index, ranked in scores.ranked.items()
        },
        "people": {
            str(prompt_index): [asdict(lane) for lane in preferred] for prompt_index, preferred in scores.people.items()
        },
        "keyframe": [
            {"prompt_index": found.prompt_index, "elements": dict(found.presences)} for found in scores.keyframe
        ],
    }


def _lane(lane: LanePlan) -> dict[str, Any]:
    return {
        "lane_id": lane.lane_id,
        "title": lane.lane_title,
        "digest": lane.lane_digest,
        "repo": lane.weights_repo,
        "revision": lane.weights_revision,
        "device": lane.device,
        "preflight": lane.preflight,
    }


def json_text(document: Mapping[str, Any]) -> str:
    """One line per key and per item of a list: a person finds the row, and the fast encoder writes it."""
    lines = [f" {json.dumps(key)}: {_value(value)}" for key, value in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _value(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {_compact(item)}" for item in value) + "\n ]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
