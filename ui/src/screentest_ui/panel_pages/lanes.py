"""Lanes: what this machine can send a prompt through, whether its weights are here, and what the doctor says of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st

from screentest.errors import BadRequest
from screentest.lanes import Lane, load_lanes
from screentest.measured import load_measured
from screentest.records import LaneView, Task
from screentest_ui import catalogue, panel_budget, panel_link, services
from screentest_ui.panel_doctor import Doctor, doctor
from screentest_ui.panel_text import UNKNOWN, column_px, counted, plain
from screentest_ui.weights_folder import Folder, State

EVERY_S = 5.0
FILES_KEPT_S = 30.0
MODELS_DIR = "SCREENTEST_MODELS_DIR"


def lane_files() -> Mapping[str, Lane]:
    """The lane files of this installation; none where the panel runs without them."""
    try:
        return load_lanes(services.installation(os.environ).lanes_dir)
    except BadRequest:
        return {}


def weights_here(lanes: Mapping[str, Lane]) -> dict[str, State]:
    """Only where the panel was told which folder holds them: a panel elsewhere knows nothing of this disk."""
    folder = os.environ.get(MODELS_DIR)
    if not folder:
        return {}
    return {lane_id: Folder(models_dir=Path(folder), lane_id=lane_id).state() for lane_id in lanes}


def catalogued(views: Sequence[LaneView]) -> tuple[catalogue.Row, ...]:
    lanes = panel_link.kept("lane_files", FILES_KEPT_S, lane_files)
    weights = panel_link.kept("weights_here", FILES_KEPT_S, lambda: weights_here(lanes))
    measured = load_measured(services.installation(os.environ).lanes_dir.parent / "measured")
    return catalogue.rows(lanes, weights, measured, views)


def row(lane: catalogue.Row, seen: Doctor) -> dict[str, object]:
    """One line of the catalogue; None where nobody has counted the parameters."""
    verdict = seen.verdicts.get(lane.lane_id)
    return {
        "Lane": lane.lane_id,
        "Model": lane.lane_title,
        "Task": lane.task.upper(),
        "Worker": cell(lane, "Worker"),
        "Weights here": cell(lane, "Weights"),
        "Smallest card": cell(lane, "Smallest card"),
        "Doctor": verdict.words if verdict is not None else "not examined",
        "Waiting": lane.queued,
        "Billion parameters": lane.parameters_b,
        "Licence": (lane.licence or UNKNOWN) + (" (gated)" if lane.gated else ""),
        "Repository": lane.repo,
        "Rungs": cell(lane, "Rungs"),
        "Env": lane.env,
    }


def cell(lane: catalogue.Row, column: str) -> str:
    return lane.cells[catalogue.COLUMNS.index(column)]


def judge_row(judge: LaneView) -> dict[str, object]:
    return {
        "Judge": judge.lane_id,
        "Model": judge.lane_title,
        "Tier": f"{judge.tier} ({panel_budget.TIERS.get(judge.tier, UNKNOWN)})",
        "Worker": "alive" if judge.worker_alive else "none",
        "Device": f"{judge.host} {judge.device}".strip(),
        "Waiting": judge.queued,
        "Licence": judge.licence or UNKNOWN,
        "Repository": judge.repo,
    }


def summary(rows: Sequence[catalogue.Row]) -> str:
    alive = sum(bool(lane.worker_alive) for lane in rows)
    return f"{counted(len(rows), 'lane')}, {counted(alive, 'live worker')}."


def show_lanes(views: Sequence[LaneView]) -> None:
    with_stubs = st.toggle("Stub lanes", key="stubs", help="They make moving discs for tests; they are no models.")
    models = [view for view in views if view.task is not Task.JUDGE]
    rows = [lane for lane in catalogued(models) if with_stubs or lane.env != services.STUB_ENV]
    seen = doctor()
    st.write(summary(rows))
    st.dataframe(
        [row(lane, seen) for lane in rows],
        hide_index=True,
        height="content",
        placeholder=UNKNOWN,
        column_config={
            "Lane": st.column_config.TextColumn(width=column_px(lane.lane_id for lane in rows)),
            "Model": st.column_config.TextColumn(width=column_px(lane.lane_title for lane in rows)),
            "Billion parameters": st.column_config.NumberColumn(format="%.1f"),
            "Doctor": st.column_config.TextColumn(width="medium" if seen.verdicts else None),
        },
        alt="The lanes with task, worker, weights, card, licence and the doctor's verdict",
    )
    show_doctor(rows, seen)


def show_doctor(rows: Sequence[catalogue.Row], seen: Doctor) -> None:
    """The doctor runs each lane's miniature: it takes up to minutes a lane, and only when asked."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.multiselect("Examine lanes", [lane.lane_id for lane in rows], key="to_examine", width=420)
        label = "Examining …" if seen.is_busy else "Ask the doctor"
        if st.button(label, key="examine", disabled=seen.is_busy or not chosen, icon=":material/stethoscope:"):
            seen.examine(chosen)
            panel_link.redraw()
    for lane_id, verdict in seen.verdicts.items():
        if verdict.faults or verdict.trouble:
            st.error(f"**{plain(lane_id)}** {plain(verdict.words)}", icon=":material/error:")


def show_judges(views: Sequence[LaneView]) -> None:
    judges = panel_budget.judges(views)
    st.subheader(counted(len(judges), "judge"))
    if not judges:
        st.caption("The scheduler knows of no judge.")
        return
    st.dataframe(
        [judge_row(judge) for judge in judges],
        hide_index=True,
        height="content",
        alt="The judges by tier",
    )


@st.fragment(run_every=EVERY_S)
def live() -> None:
    with panel_link.errors_shown():
        views = panel_link.scheduler().list_lanes()
        show_lanes(views)
        show_judges(views)


st.title("Lanes")
st.caption("A lane is one model configuration with its own queue. Adding one is one TOML file in `deploy/lanes/`.")
live()
