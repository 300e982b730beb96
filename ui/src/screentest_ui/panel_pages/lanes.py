"""Lanes: the catalogue of what this machine can send a prompt through."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from screentest.records import LaneView
from screentest_ui import panel_link
from screentest_ui.panel_text import counted

EVERY_S = 5.0


def row(lane: LaneView) -> dict[str, object]:
    """One line of the catalogue; None where nobody has counted the parameters."""
    return {
        "Lane": lane.lane_id,
        "Model": lane.lane_title,
        "Task": lane.task.value.upper(),
        "Worker": "alive" if lane.worker_alive else "no worker",
        "Runner": "warm" if lane.runner_warm else "cold",
        "Waiting": lane.queued,
        "Device": f"{lane.host} {lane.device}",
        "Billion parameters": lane.parameters_b,
        "Licence": lane.licence + (" (gated)" if lane.gated else ""),
        "Weights": lane.repo,
        "Env": lane.env,
        "Digest": lane.lane_digest[:12],
    }


def summary(lanes: Sequence[LaneView]) -> str:
    alive = sum(lane.worker_alive for lane in lanes)
    return f"{counted(len(lanes), 'lane')}, {counted(alive, 'live worker')}."


@st.fragment(run_every=EVERY_S)
def catalogue() -> None:
    with panel_link.errors_shown():
        lanes = panel_link.scheduler().list_lanes()
        st.write(summary(lanes))
        st.dataframe(
            [row(lane) for lane in lanes],
            hide_index=True,
            height="content",
            placeholder="unknown",
            column_config={"Billion parameters": st.column_config.NumberColumn(format="%.1f")},
            alt="The lanes with task, worker, device, licence and weights",
        )


st.title("Lanes")
st.caption("A lane is one model configuration with its own queue. Adding one is one TOML file in `deploy/lanes/`.")
catalogue()
