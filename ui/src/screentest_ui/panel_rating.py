"""People's part on the page: rate a clip blind, choose between two, and put a finding into one's own words."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import streamlit as st

from screentest.client import Votes
from screentest.errors import ScreentestError
from screentest.records import Job, PairOutcome, Sweep, Tick
from screentest.rubric import Rubric
from screentest_ui import panel_access, panel_link
from screentest_ui.panel_blind import blind_links
from screentest_ui.panel_clips import clip_of
from screentest_ui.panel_judging import rubric_of
from screentest_ui.panel_people import (
    ANCHORS,
    NO_NAME,
    PRELIMINARY_UNDER,
    Contender,
    Pair,
    Words,
    contenders,
    findings,
    next_pair,
    queue,
)
from screentest_ui.panel_player import Screen, pair, player
from screentest_ui.panel_text import counted, plain

NOT_RATED = "not rated"
MOST_TEXT = 500
_SCORES = [NOT_RATED, *(f"{half / 2:g}" for half in range(21))]
_ONLY_RANDOM = (
    "There is nothing to judge here: no clip is out yet, or all are of random weights, "
    "and an opinion on those would be an invented number."
)


# ---- blind 0 to 10


def show_rating(sweep_id: str, conflicts: Container[str] = ()) -> None:
    """One clip at a time without its name: a number by the anchors, and what of the rubric is there."""
    with panel_link.errors_shown():
        sweep, jobs, votes = _asked(sweep_id)
        rater = ask_name()
        clips = contenders(jobs)
        if not clips:
            st.info(_ONLY_RANDOM)
            return
        passed = st.session_state.setdefault(f"passed-{sweep_id}", [])
        waiting = [
            clip
            for clip in queue(clips, votes.ratings, sweep_id, rater=rater, conflicts=conflicts)
            if clip.job_id not in passed
        ]
        rated = len({rating.job_id for rating in votes.ratings})
        st.caption(
            f"{counted(rated, 'clip')} of {len(clips)} rated by anybody. Names are hidden; clips on which judges "
            "disagree come first, the others by lot."
        )
        if not waiting:
            show_all_rated(sweep_id, passed)
            return
        show_card(sweep, waiting[0], rubric_of(sweep, waiting[0].prompt_index))


def show_all_rated(sweep_id: str, passed: Sequence[str]) -> None:
    st.success("All clips are rated." if not passed else f"All but {counted(len(passed), 'clip')} passed over.")
    if passed and st.button("Show them again", key="unpass", type="tertiary"):
        st.session_state[f"passed-{sweep_id}"] = []
        panel_link.redraw()


def show_card(sweep: Sweep, clip: Contender, asked: Rubric | None) -> None:
    left, right = st.columns([3, 2], gap="large")
    with left:
        link = blind_links([clip_of(clip.job_id)], "rated")[clip_of(clip.job_id)]
        if link.url:
            player([Screen(id=link.url, url=link.url, label="A clip", fps=clip.fps)], key="rated-clip")
        else:
            st.warning(plain(link.trouble), icon=":material/cloud_off:")
        st.text(clip.prompt)
    with right:
        answer = ask_rating(clip, asked) if link.url else None
        with st.container(horizontal=True):
            if answer is not None:
                offer_saving(clip, *answer, asked)
            if st.button("Pass", key="pass", help="This clip comes again when all others are rated."):
                st.session_state[f"passed-{sweep.record.sweep_id}"].append(clip.job_id)
                panel_link.redraw()


def ask_rating(clip: Contender, asked: Rubric | None) -> tuple[float | None, tuple[Tick, ...]]:
    """The number, None = none given, and the ticks."""
    score = st.select_slider("How well does it follow the prompt?", _SCORES, key=f"score-{clip.blind_name}")
    st.caption(" · ".join(f"**{value}** {words}" for value, words in ANCHORS.items()))
    return None if score == NOT_RATED else float(score), ask_ticks(clip, asked)


def offer_saving(clip: Contender, score10: float | None, ticks: Sequence[Tick], asked: Rubric | None) -> None:
    is_empty = score10 is None and not any(tick.present for tick in ticks)
    if st.button("Save, next clip", key="rate", type="primary", disabled=is_empty, icon=":material/check:"):
        rate(clip, score10, ticks, asked)


def ask_ticks(clip: Contender, asked: Rubric | None) -> tuple[Tick, ...]:
    """Each element of the rubric, ticked = it is there. All or none of them are kept: no tick is an answer too."""
    if asked is None:
        st.caption("The rubric of this prompt is not to be had now; the number alone can be kept.")
        return ()
    if not st.toggle("Tick what is there", key=f"ticking-{clip.blind_name}"):
        return ()
    return tuple(
        Tick(
            element_id=element.id,
            present=st.checkbox(plain(element.text), key=f"tick-{clip.blind_name}-{element.id}", help=element.kind),
        )
        for element in asked.elements
    )


def rate(clip: Contender, score10: float | None, ticks: Sequence[Tick], asked: Rubric | None) -> None:
    with panel_link.errors_told():
        rubric_sha256 = asked.sha256 if asked is not None and ticks else ""
        panel_link.scheduler().rate_clip(
            clip.job_id, score10=score10, ticks=ticks, rubric_sha256=rubric_sha256, rater=_name()
        )
        st.toast(f"Kept. It was {plain(clip.model)}.", icon=":material/check:")
        panel_link.redraw()


# ---- blind pairs


def show_pairs(sweep_id: str) -> None:
    """Two clips of one prompt without names, played together, answered by the keys 1 to 4."""
    with panel_link.errors_shown():
        _, jobs, votes = _asked(sweep_id)
        rater = ask_name()
        for words in st.session_state.pop("pair_said", ()):
            st.caption(words)
        found = next_pair(contenders(jobs), votes.pairs, sweep_id, rater=rater or NO_NAME)
        if found is None:
            st.info("Two lanes with a clip of the same prompt make a pair; clips of random weights are left out.")
            return
        preliminary = " They order nothing yet." if len(votes.pairs) < PRELIMINARY_UNDER else ""
        st.caption(f"{counted(len(votes.pairs), 'vote')} so far.{preliminary} Sides are drawn by lot.")
        if found.is_answered:
            st.caption("You have voted on every pair. Another vote takes the place of your earlier one.")
        show_pair(found)


def show_pair(found: Pair) -> None:
    wanted = [clip_of(found.left.job_id), clip_of(found.right.job_id)]
    left, right = (blind_links(wanted, "pair")[item] for item in wanted)
    if not left.url or not right.url:
        st.warning(plain(left.trouble or right.trouble), icon=":material/cloud_off:")
        return
    st.text(found.left.prompt)
    pair(
        Screen(id=left.url, url=left.url, label="Left", fps=found.left.fps),
        Screen(id=right.url, url=right.url, label="Right", fps=found.right.fps),
        key="blind-pair",
        on_answer=lambda outcome: vote(found, outcome),
    )


def vote(found: Pair, outcome: PairOutcome) -> None:
    """Names are told after the answer, never before it."""
    try:
        panel_link.scheduler().vote_pair(found.left.job_id, found.right.job_id, outcome, rater=_name())
    except ScreentestError as error:
        st.session_state["pair_said"] = (f":red[Not kept: {plain(str(error))}]",)
        return
    words = outcome.value.replace("-", " ")
    names = f"left was {plain(found.left.model)}, right was {plain(found.right.model)}"
    st.session_state["pair_said"] = (f":material/check: The last pair: {words}; {names}.",)


# ---- findings


def show_findings(sweep_id: str, composed: Mapping[str, str]) -> None:
    """Each row's words as they were composed, and as a person puts them. Both versions are kept."""
    with panel_link.errors_shown():
        _, jobs, votes = _asked(sweep_id)
        rows = findings(jobs, composed, votes.findings)
        if not rows:
            st.info("The findings are here when the first job has ended.")
        for words in rows:
            show_words(sweep_id, words)


def show_words(sweep_id: str, words: Words) -> None:
    with st.container(border=True):
        st.markdown(f"**{plain(words.model)}**")
        if words.edited is not None:
            st.caption(f"As composed: {plain(words.original) or 'nothing'}")
        text = st.text_area(
            "Finding",
            words.edited if words.edited is not None else words.original,
            key=f"finding-{words.row}-{hash((words.original, words.edited))}",
            label_visibility="collapsed",
            height=68,
            max_chars=MOST_TEXT,
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button("Save", key=f"save-{words.row}", icon=":material/check:"):
                edit(sweep_id, words.row, " ".join((text or "").split()))
            if words.edited is not None and st.button("Back to the original", key=f"undo-{words.row}", type="tertiary"):
                edit(sweep_id, words.row, "")
            if words.edited is not None:
                st.caption(plain(f"edited by {words.by}" if words.by else "edited"))


def edit(sweep_id: str, row: str, text: str) -> None:
    with panel_link.errors_told():
        panel_link.scheduler().edit_finding(sweep_id, row, text, by=_name())
        st.toast("Kept; the next revision of the report has it.", icon=":material/check:")
        panel_link.redraw()


def ask_name() -> str:
    """Who rates: the login's name, else what a person calls themselves; "" = nobody said."""
    if not panel_access.person():
        st.text_input(
            "Your name",
            key="rater",
            placeholder=NO_NAME,
            max_chars=80,
            help="Each rater's last word about a clip or pair counts.",
        )
    return _name()


def _name() -> str:
    return panel_access.person() or " ".join(str(st.session_state.get("rater") or "").split())


def _asked(sweep_id: str) -> tuple[Sweep, tuple[Job, ...], Votes]:
    client = panel_link.scheduler()
    return client.get_sweep(sweep_id), client.list_jobs(sweep_id), client.list_votes(sweep_id)
