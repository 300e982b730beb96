"""The rubrics of the Submit form: drafted as the prompt is typed, edited and approved in place, uploaded at submit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from screentest import rubric
from screentest.records import RubricRef
from screentest.rubric import MAX_ELEMENTS, MIN_ELEMENTS, Rubric, prompt_sha256
from screentest_ui import panel_access, panel_link, panel_rubric
from screentest_ui.panel_text import plain, shortened

KEPT = "rubrics"  # in the session and in the draft of the form: Desk by hash of the prompt
PERSON = "person"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """One prompt's rubric at work. ``base``: what the tables were filled with; ``now``: with what a person changed.

    ``filling`` counts how often the tables were filled: a table keeps its edits under a name, and a new filling needs
    a new one.
    """

    base: Rubric
    now: Rubric
    filling: int = 0


def desks(prompts: Sequence[str]) -> list[Desk | None]:
    """One for each prompt; None where nothing can be drafted. A prompt that comes back finds its edits again."""
    kept: dict[str, Desk] = st.session_state.setdefault(KEPT, {})
    for prompt in prompts:
        if prompt_sha256(prompt) not in kept and (drafted := panel_rubric.drafted(prompt)) is not None:
            kept[prompt_sha256(prompt)] = Desk(base=drafted, now=drafted)
    return [kept.get(prompt_sha256(prompt)) for prompt in prompts]


def rubrics(prompts: Sequence[str]) -> list[Rubric | None]:
    return [desk.now if desk is not None else None for desk in desks(prompts)]


@st.fragment
def show_rubrics(prompts: Sequence[str]) -> None:
    """An expander for each prompt. A fragment: an edit draws the tables again, and nothing else of the page."""
    for number, (prompt, desk) in enumerate(zip(prompts, desks(prompts), strict=True), start=1):
        name = f"Rubric {number}" if len(prompts) > 1 else "Rubric"
        if desk is None:
            st.caption(
                f":material/info: {name}: nothing to look for can be drafted from {plain(shortened(prompt, 60))}"
            )
            continue
        with st.expander(f"{name}: {plain(panel_rubric.summary(desk.now))}", icon=_icon(desk.now)):
            show_editor(prompt, desk)


def _icon(asked: Rubric) -> str:
    return ":material/edit_note:" if asked.is_draft else ":material/verified:"


def show_editor(prompt: str, desk: Desk) -> None:
    sha256 = prompt_sha256(prompt)
    st.caption(
        f"What a judge looks for, one yes or no each; {MIN_ELEMENTS} to {MAX_ELEMENTS} make a rubric that can be "
        "approved. Add a row at the end, delete one by its box. An edit makes a draft of it again."
    )
    elements = st.data_editor(
        panel_rubric.element_rows(desk.base),
        key=f"elements-{sha256[:12]}-{desk.filling}",
        num_rows="dynamic",
        hide_index=True,
        column_config=_element_columns(),
        alt="The elements of the rubric",
    )
    beats = st.data_editor(
        panel_rubric.beat_rows(desk.base) or [{"n": None, "label": "", "cut_expected": False}],
        key=f"beats-{sha256[:12]}-{desk.filling}",
        num_rows="dynamic",
        hide_index=True,
        column_config={
            "n": st.column_config.NumberColumn("Beat", disabled=True, width="small"),
            "label": st.column_config.TextColumn("Beats, in the order of the story", width="large"),
            "cut_expected": st.column_config.CheckboxColumn("Cut before it"),
        },
        alt="The beats of the rubric",
    )
    now = panel_rubric.from_rows(desk.base, elements, beats)
    put(sha256, Desk(base=desk.base, now=now, filling=desk.filling))
    if now != desk.now:
        panel_link.redraw()  # the name of the expander says what it holds
    show_state(prompt, now)


def _element_columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "id": column.TextColumn("Id", pinned=True),
        "kind": column.SelectboxColumn("Kind", options=list(panel_rubric.KINDS), required=True, default="subject"),
        "text": column.TextColumn("Element", width="medium"),
        "weight": column.SelectboxColumn("Weight", options=list(panel_rubric.WEIGHT_CHOICES), default="1"),
        "beat": column.NumberColumn("Beat", min_value=1, max_value=rubric.MAX_BEATS, step=1),
        "question": column.TextColumn("Question: yes = it is there", width="medium"),
        "counter_question": column.TextColumn("Counter-question", width="medium"),
        "depends_on": column.TextColumn("Depends on", help="Ids, separated by commas."),
        "swaps": column.TextColumn("Swaps", help="What must be found less than it, separated by semicolons."),
        "flow": column.SelectboxColumn("Camera move", options=list(panel_rubric.MOVES)),
    }


def show_state(prompt: str, now: Rubric) -> None:
    """What is wrong, by element; or who stands for it, and the way to."""
    wrong = panel_rubric.problems(now)
    for place, words in wrong:
        st.error(f"**{plain(place)}** {plain(words)}", icon=":material/error:")
    if wrong:
        return
    strangers = rubric.strangers(now, prompt)
    if strangers:
        st.caption(f":material/info: The prompt has no word of: {plain(', '.join(strangers))}")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if now.approved_by is not None:
            st.caption(f":green[:material/verified: Approved by {plain(now.approved_by)}.]")
        else:
            show_approval(prompt, now)
        if st.button("Draft it anew", key=f"redraft-{prompt_sha256(prompt)[:12]}", type="tertiary"):
            st.session_state[KEPT].pop(prompt_sha256(prompt))
            panel_link.redraw()


def show_approval(prompt: str, now: Rubric) -> None:
    missing = panel_rubric.approval_problem(now)
    # Who is logged in approves in no other name.
    name = panel_access.person() or st.text_input(
        "Your name", key=PERSON, persist_state="session", max_chars=80, width=220
    )
    approve = st.button(
        "Approve it",
        key=f"approve-{prompt_sha256(prompt)[:12]}",
        icon=":material/verified:",
        disabled=bool(missing) or not (name or "").strip(),
        help="You have read it and stand for it: scores then say who approved their rubric.",
    )
    if missing:
        st.caption(f"Not fit to be approved: {plain(missing)}")
    if approve:
        approved = rubric.approve(now, name or "", panel_rubric.SOURCE)
        desk: Desk = st.session_state[KEPT][prompt_sha256(prompt)]
        put(prompt_sha256(prompt), Desk(base=approved, now=approved, filling=desk.filling + 1))
        panel_link.redraw()


def take(prompt: str, written: Rubric) -> None:
    """A rubric that lies in a file, in place of the draft: with its approval, if it has one."""
    sha256 = prompt_sha256(prompt)
    kept: dict[str, Desk] = st.session_state.get(KEPT, {})
    filling = kept[sha256].filling + 1 if sha256 in kept else 0
    put(sha256, Desk(base=written, now=written, filling=filling))


def put(sha256: str, desk: Desk) -> None:
    st.session_state.setdefault(KEPT, {})[sha256] = desk


def faults(prompts: Sequence[str]) -> tuple[str, ...]:
    """Which rubrics cannot be sent as they stand."""
    found = enumerate(rubrics(prompts), start=1)
    return tuple(f"rubric {number}" for number, asked in found if asked is not None and panel_rubric.problems(asked))


def uploaded(prompts: Sequence[str]) -> tuple[RubricRef, ...]:
    """The rubrics that a person edited or approved, in the depot; the scheduler drafts the others as we did."""
    refs = []
    for index, (prompt, asked) in enumerate(zip(prompts, rubrics(prompts), strict=True)):
        if asked is not None and (asked.source == "author" or asked.approved is not None):
            content = rubric.to_json(asked).encode()
            refs.append(
                panel_link.scheduler().upload_rubric(
                    content, file_name=f"rubric {index + 1}", prompt=prompt, prompt_index=index
                )
            )
    return tuple(refs)
