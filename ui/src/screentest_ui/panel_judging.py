"""Judging on the page: the rubric that a sweep is judged by, and judging it again with the cost shown first."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from screentest import rubric
from screentest.errors import ScreentestError
from screentest.records import ArtifactKind, JudgeCost, Sweep
from screentest.rubric import Rubric
from screentest_ui import panel_budget, panel_link, panel_rubric
from screentest_ui.panel_artifacts import Wanted, fetched, links
from screentest_ui.panel_jobs import waits_for_judges
from screentest_ui.panel_text import UNKNOWN, counted, duration, plain

_STATES = ("running", "queued", "completed", "failed", "refused", "cancelled")


def rubric_of(sweep: Sweep, prompt_index: int) -> Rubric | None:
    """What this prompt's clips are judged by; None where nobody can say now.

    A draft is the same for the same prompt: it is made here. Only an edited or approved rubric is fetched.
    """
    prompt = sweep.record.spec.prompts[prompt_index]
    ref = next((ref for ref in sweep.record.rubrics if ref.prompt_index == prompt_index), None)
    drafted = panel_rubric.drafted(prompt)
    if ref is None or (drafted is not None and drafted.sha256 == ref.rubric_sha256 and not ref.approved_by):
        return drafted
    kept: dict[str, Rubric] = st.session_state.setdefault("sweep_rubrics", {})
    if ref.sha256 not in kept:
        wanted = Wanted(kind=ArtifactKind.RUBRIC, sweep_id=sweep.record.sweep_id, name=str(prompt_index))
        try:
            kept[ref.sha256] = rubric.from_json(fetched(links([wanted])[wanted]).decode(), ref.key)
        except ScreentestError:
            return None
    return kept[ref.sha256]


def show_judging(sweep_id: str) -> None:
    """Which judges, what they would cost, and only then the button."""
    with panel_link.errors_shown():
        sweep = panel_link.scheduler().get_sweep(sweep_id)
        show_scoring(sweep)
        judges = panel_budget.judges(panel_link.scheduler().list_lanes())
        if not judges:
            st.info("This machine has no judges: none is in `deploy/judges/`, or the scheduler is older than they are.")
            return
        titles = {judge.lane_id: judge.lane_title for judge in judges}
        before = [judge.lane_id for judge in sweep.record.judges if judge.lane_id in titles]
        chosen = st.multiselect(
            "Judges",
            list(titles),
            default=before,
            format_func=lambda lane_id: titles[lane_id],
            key=f"judges-{sweep_id}",
            placeholder="those that the sweep has",
        )
        if st.button("Show what it costs", key="judge-cost", icon=":material/calculate:"):
            answer = panel_link.scheduler().judge_sweep(sweep_id, judge_lane_ids=chosen, estimate_only=True)
            st.session_state["judge_cost"] = (sweep_id, tuple(chosen), answer.costs)
        seen_id, seen, costs = st.session_state.get("judge_cost", ("", (), ()))
        if (seen_id, seen) == (sweep_id, tuple(chosen)):
            show_costs(costs, titles)
            if st.button(judge_label(costs), key="judge", type="primary", disabled=not costs, icon=":material/gavel:"):
                judge_again(sweep_id, chosen)


def show_scoring(sweep: Sweep) -> None:
    if sweep.record.spec.weights.is_random:
        st.caption("These clips are of random weights: their pixels are looked at, and nothing of them is scored.")
    if sweep.scoring is None:
        st.caption("Nothing of this sweep was judged.")
        return
    counts = sweep.scoring.counts
    words = ", ".join(f"{getattr(counts, state)} {state}" for state in _STATES if getattr(counts, state))
    st.caption(f"Judgements: {words or 'none'}. They never change the clips, and a failed one fails no sweep.")
    if waited_for := waits_for_judges(sweep):
        st.caption(plain(f"Judging waits for a worker of {', '.join(waited_for)}; it goes on when there is one."))


def show_costs(costs: Sequence[JudgeCost], titles: dict[str, str]) -> None:
    if not costs:
        st.caption("There is nothing to judge.")
        return
    st.dataframe(
        [cost_row(cost, titles.get(cost.lane_id, cost.lane_id)) for cost in costs],
        hide_index=True,
        alt="What judging would take",
    )


def cost_row(cost: JudgeCost, title: str) -> dict[str, str]:
    return {
        "Judge": title,
        "Tier": f"{cost.tier} ({panel_budget.TIERS.get(cost.tier, UNKNOWN)})",
        "Judgements": str(cost.jobs),
        "Questions": f"{cost.calls:,}",
        "Time": duration(cost.seconds),
        "Basis": cost.basis or "nobody has measured this",
    }


def judge_label(costs: Sequence[JudgeCost]) -> str:
    return f"Judge: {counted(sum(cost.jobs for cost in costs), 'judgement')}"


def judge_again(sweep_id: str, chosen: Sequence[str]) -> None:
    with panel_link.errors_told():
        panel_link.scheduler().judge_sweep(sweep_id, judge_lane_ids=chosen)
        st.session_state.pop("judge_cost", None)
        st.toast(f"{plain(sweep_id)} is judged again; the report shows it when it is done", icon=":material/gavel:")
        panel_link.redraw()
