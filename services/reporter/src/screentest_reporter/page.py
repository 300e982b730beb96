"""A case study as one HTML page that opens from disk and from a server, and as Markdown; both from the same rows.

The page is its own policy: only its own style and scripts run (by hash), only files beside it are fetched. Plots are
drawn by Plotly, embedded once; it is left out of a page that has nothing to plot.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from screentest import table
from screentest_reporter import charts, energy, heat_map, model_table, vitals
from screentest_reporter.case_study import CaseStudy, weights_text
from screentest_reporter.model_table import ReportRow

# Above this a browser would open too many videos at once; the posters are shown at any number.
PRELOAD_UP_TO: Final = 24
# A page of thousands of players opens nowhere: the rest stands in the table, each with a link to its clip.
CARDS_UP_TO: Final = 200
# Plotly.js, basic bundle (bars, lines and points), as npm publishes it: see vendor/README.md.
PLOTLY: Final = "plotly-basic.min.js"


def render_html(study: CaseStudy) -> str:
    """The page. What a person wrote is escaped by the template, and in the plots' data here."""
    figures = charts.figures(study.chart, study.ledger, study.rows)
    css = _source("templates", "report.css")
    scripts = [_source("templates", "report.js")] if not figures else [_plotly(), _source("templates", "report.js")]
    clips = [row for row in study.rows if row.clip is not None]
    return (
        _environment()
        .get_template("report.html")
        .render(
            study=study,
            css=Markup(css),
            scripts=[Markup(script) for script in scripts],
            policy=content_policy(css, scripts),
            figures=figures,
            data=Markup(script_json(figures)),
            columns=model_table.COLUMNS,
            numbers=table.numbered_footnotes([row.row for row in study.rows]),
            clips=clips,
            cards=clips[:CARDS_UP_TO],
            carded={row.row.job_id for row in clips[:CARDS_UP_TO]},
            preload="metadata" if len(clips) <= PRELOAD_UP_TO else "none",
            titles={lane.lane_id: lane.lane_title for lane in study.record.lanes},
            buckets=vitals.BUCKETS,
            has_scores=any(row.score is not None for row in clips),
        )
    )


def render_markdown(study: CaseStudy) -> str:
    return _environment().get_template("report.md").render(study=study, table=model_table.markdown(study.rows))


def content_policy(css: str, scripts: Sequence[str]) -> str:
    """Nothing runs but the page's own scripts, nothing is fetched but the files beside it (``file:`` = from disk).

    The hash of the empty style is for Plotly: it adds its rules to an element that is there already and is empty.
    """
    runs = " ".join(f"'{_hash(script)}'" for script in scripts)
    return (
        "default-src 'none'; img-src 'self' file: data:; media-src 'self' file:; "
        f"style-src '{_hash(css)}' '{_hash('')}'; script-src {runs}; base-uri 'none'; form-action 'none'"
    )


@cache
def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def script_json(content: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _plotly() -> str:
    return _source("vendor", PLOTLY)


@cache
def _source(folder: str, name: str) -> str:
    """A file of this package, as it is."""
    return resources.files("screentest_reporter").joinpath(folder, name).read_text(encoding="utf-8")


def beat_strip(row: ReportRow) -> Markup:
    """The strip of a scored clip; it is made of numbers alone. Empty where nothing was judged."""
    parts = row.score.score.parts if row.score else None
    return Markup(heat_map.beat_strip(parts.beats)) if parts else Markup("")


def path_text(row: ReportRow) -> str:
    parts = row.score.score.parts if row.score else None
    return heat_map.path_text(parts.beats) if parts else ""


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("screentest_reporter", "templates"),
        # Prompts, titles and causes are other people's text: in HTML they stay text.
        autoescape=lambda name: name is not None and name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "latency": table.latency_text,
        "wh": energy.wh_text,
        "wh_cell": model_table.wh_cell,
        "md": table.markdown_text,
        "gib": model_table.gib_text,
        "link": quote,
        "number": table.number_text,
        "weights": weights_text,
        "ticks": lambda row: heat_map.ticks(row.score),
        "shade": heat_map.shade,
        "beat_strip": beat_strip,
        "path_text": path_text,
    }
    return environment
