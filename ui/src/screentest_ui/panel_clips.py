"""The clips of a sweep on the page: players, contact sheets, and what the probe read."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from screentest.records import ArtifactKind
from screentest_ui import panel_link
from screentest_ui.panel_artifacts import Link, Wanted, links
from screentest_ui.panel_player import MOST_CLIPS, Screen, player
from screentest_ui.panel_sweep import ClipCard
from screentest_ui.panel_text import RANDOM_WEIGHTS, RANDOM_WEIGHTS_HELP, plain

AT_ONCE = 12  # players on the page before a person asks for more: each one loads its clip's first frames
COLUMNS = 3


def show_clips(sweep_id: str, cards: Sequence[ClipCard]) -> None:
    """A player for each clip. The page asks the depot for links only, the browser streams the clips."""
    shown = st.session_state.get(f"clips_shown_{sweep_id}", AT_ONCE)
    visible = cards[:shown]
    with_sheets = st.toggle("Contact sheets", key=f"sheets_{sweep_id}", help="Twelve frames at equal times per clip.")
    clip_links = links([clip_of(card.job_id) for card in visible])
    sheet_links = links([sheet_of(sweep_id, card.job_id) for card in visible]) if with_sheets else {}
    # Row by row: on a narrow screen the columns of a row stand under each other, and the order stays.
    for start in range(0, len(visible), COLUMNS):
        for column, card in zip(st.columns(COLUMNS), visible[start : start + COLUMNS], strict=False):
            with column:
                show_clip(card, clip_links[clip_of(card.job_id)], sheet_links.get(sheet_of(sweep_id, card.job_id)))
    if len(cards) > shown and st.button(f"Show {min(AT_ONCE, len(cards) - shown)} more of {len(cards)} clips"):
        st.session_state[f"clips_shown_{sweep_id}"] = shown + AT_ONCE
        panel_link.redraw()


def show_side_by_side(sweep_id: str, cards: Sequence[ClipCard]) -> None:
    """Up to four clips on one transport; which ones stands in the address, the position in the browser."""
    if not cards:
        st.caption("The first clip stands here when its job has ended.")
        return
    by_id = {card.job_id: card for card in cards}
    asked = [job_id for job_id in st.query_params.get("clips", "").split(",") if job_id in by_id]
    chosen = st.multiselect(
        "Clips",
        list(by_id),
        default=asked or list(by_id)[:2],
        format_func=lambda job_id: by_id[job_id].model,
        max_selections=MOST_CLIPS,
        key=f"side-{sweep_id}",
    )
    st.query_params["clips"] = ",".join(chosen)
    found = links([clip_of(job_id) for job_id in chosen])
    for job_id in chosen:
        if not found[clip_of(job_id)].url:
            st.warning(plain(f"{by_id[job_id].model}: {found[clip_of(job_id)].trouble}"), icon=":material/cloud_off:")
    screens = [
        Screen(id=job_id, url=found[clip_of(job_id)].url, label=by_id[job_id].model, fps=by_id[job_id].fps)
        for job_id in chosen
        if found[clip_of(job_id)].url
    ]
    if screens:
        player(screens, key=f"player-{sweep_id}")


def show_clip(card: ClipCard, clip: Link, sheet: Link | None) -> None:
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain(card.model)}**", width="content")
            if card.random_weights:
                st.badge(RANDOM_WEIGHTS, color="orange", help=RANDOM_WEIGHTS_HELP)
            for flag in card.flags:
                st.badge(flag, color="red", help="The clip is valid, but the probe saw this in its frames.")
        if clip.url:
            st.video(clip.url, alt=f"Clip of {card.model}")
        else:
            st.warning(plain(clip.trouble), icon=":material/cloud_off:")
        st.caption(plain(card.facts), help=plain(f"Seed {card.seed}. {card.prompt}"))
        if sheet is not None:
            show_sheet(card, sheet)


def show_sheet(card: ClipCard, sheet: Link) -> None:
    if sheet.url:
        st.image(sheet.url, width="stretch", alt=f"Contact sheet of {card.model}")
    else:
        st.caption(plain(f"no contact sheet yet: {sheet.trouble}"))


def clip_of(job_id: str) -> Wanted:
    return Wanted(kind=ArtifactKind.CLIP, job_id=job_id)


def sheet_of(sweep_id: str, job_id: str) -> Wanted:
    return Wanted(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name=f"sheets/{job_id}.jpg")


def poster_of(sweep_id: str, job_id: str) -> Wanted:
    return Wanted(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name=f"posters/{job_id}.jpg")


def log_of(job_id: str) -> Wanted:
    return Wanted(kind=ArtifactKind.LOG, job_id=job_id)
