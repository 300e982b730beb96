"""Two sweeps on one page: `index.html` and `comparison.json`, beside the fetched reports whose clips they play."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from screentest_ui.comparing import Comparison, Pair, Side

UNKNOWN = "unknown"
_TEMPLATE = Path(__file__).parent / "comparison.html"


def write(found: Comparison, broken: tuple[str, ...], reports: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """The page's path. ``reports`` by sweep id, for the names of their clips."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**plain(found), "broken": list(broken)}
    (folder / "comparison.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        found=found,
        broken=broken,
        rows=[_row(pair, found, reports) for pair in found.pairs],
        titles={sweep_id: report["sweep"]["title"] for sweep_id, report in reports.items()},
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def plain(found: Comparison) -> dict[str, Any]:
    """JSON-ready, with what is computed of it."""
    pairs = [
        {
            **dataclasses.asdict(pair),
            "latency_ratio": pair.latency_ratio,
            "energy_ratio": pair.energy_ratio,
            "score_drop": pair.score_drop,
        }
        for pair in found.pairs
    ]
    return {
        "schema": "comparison/1",
        "a": found.a,
        "b": found.b,
        "survival": list(found.survival),
        "latency_ratio": found.latency_ratio,
        "energy_ratio": found.energy_ratio,
        "score_drop": found.score_drop,
        "pairs": pairs,
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
    }


def change(a: float | None, b: float | None, ratio: float | None, unit: str) -> str:
    """``12.10 -> 9.80 s (0.81x)``."""
    before, after = (UNKNOWN if value is None else f"{value:.2f}" for value in (a, b))
    return f"{before} -> {after} {unit}" + (f" ({ratio:.2f}x)" if ratio is not None else "")


def score_change(pair: Pair) -> str:
    """``6.3 -> 4.1``; overlapping intervals are said to be no difference."""
    if pair.score_drop is None:
        return "not scored"
    no_difference = ", no difference" if pair.score_drop == 0 else ""
    return f"{_score(pair.a)} -> {_score(pair.b)}{no_difference}"


def causes_text(pair: Pair) -> str:
    if pair.causes is None:
        return "unknown: a manifest is missing"
    return "; ".join(pair.causes) or "nothing"


def _score(side: Side) -> str:
    return UNKNOWN if side.score10 is None else f"{side.score10:.1f}"


def _row(pair: Pair, found: Comparison, reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "model": pair.model,
        "outcome": pair.outcome,
        "latency": change(pair.a.latency_s, pair.b.latency_s, pair.latency_ratio, "s"),
        "energy": change(pair.a.energy_wh, pair.b.energy_wh, pair.energy_ratio, "Wh"),
        "score": score_change(pair),
        "pictures": pair.likeness.text if pair.likeness else "no two clips",
        "causes": pair.causes,
        "clips": [
            (sweep_id, f"../{sweep_id}/{name}")
            for sweep_id, side in ((found.a, pair.a), (found.b, pair.b))
            if (name := _clip(reports[sweep_id], side.job_id)) is not None
        ],
    }


def _clip(report: Mapping[str, Any], job_id: str) -> str | None:
    return next((row["clip"]["file"] for row in report["rows"] if row["job_id"] == job_id and row["clip"]), None)
