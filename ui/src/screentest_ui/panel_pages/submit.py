"""Submit: one scene, the lanes it goes through, what is judged, and what all of it takes before anything is queued."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import streamlit as st

from screentest import rubric
from screentest.errors import ScreentestError
from screentest.records import Keyframe, LaneVerdict, LaneView, Requested, SweepSpec, Task, Verdict, Weights
from screentest_ui import panel_budget, panel_drafts, panel_form, panel_link, panel_rubric_editor, services, sweepfile
from screentest_ui.outlook import COLUMNS, Outlook, outlook
from screentest_ui.panel_form import Draft
from screentest_ui.panel_keyframe import crops, preview
from screentest_ui.panel_text import counted, file_size, listed, plain, weights_words

_TASKS = {Task.T2V: "Text to video", Task.I2V: "Image to video", Task.T2I: "Text to image"}
_VERDICTS = {
    Verdict.OK: (":material/check_circle:", "green"),
    Verdict.FIXED: (":material/build_circle:", "blue"),
    Verdict.REFUSED: (":material/cancel:", "red"),
    Verdict.NOT_PREFLIGHTED: (":material/help:", "orange"),
}
JUDGE_COST_KEPT_S = 60.0
# What a refresh of the browser must not lose, beside the lanes and judges.
FIELDS = (
    "title",
    "prompts",
    "seeds",
    "weights",
    "skip_impossible",
    "negative_prompt",
    "width_px",
    "height_px",
    "num_frames",
    "steps",
    "guidance",
    "fps",
    "memory_cap_gib",
    "budget_h",
    "budget_wh",
    "kept_keyframe",
    panel_rubric_editor.KEPT,
    panel_rubric_editor.PERSON,
)


def known_lanes() -> list[LaneView]:
    """The lanes; those of the last answer while the scheduler is away, so that a half-written form is not lost."""
    with panel_link.errors_shown():
        st.session_state["known_lanes"] = list(panel_link.scheduler().list_lanes())
    lanes: list[LaneView] = st.session_state.get("known_lanes", [])
    return lanes


def ask_scene() -> tuple[str, str]:
    title = st.text_input("Title", key="title", max_chars=200, placeholder="The Architect's Stillness")
    prompts_text = st.text_area(
        "Prompts",
        key="prompts",
        height=220,
        placeholder="One prompt per block of lines. A blank line begins the next prompt.",
    )
    found = panel_form.prompts(prompts_text)
    if len(found) > 1:
        st.caption(f"{len(found)} prompts: each goes through every lane with every seed.")
    return title, prompts_text


# ---- the demo's scene


def offer_demo() -> None:
    """One click from an empty form to a sweep that can be sent; never over what a person has written.

    The button then stays, without effect: one that went would move the fields below it under the person's fingers.
    """
    file = services.installation(os.environ).demo_sweep
    if not file.exists():
        return
    st.button(
        "Fill in the demo's scene",
        key="demo",
        icon=":material/auto_fix_high:",
        on_click=fill_in_demo,
        args=(file,),
        disabled=any(st.session_state.get(name) for name in ("title", "prompts")),
        help="The Architect's Stillness as `make demo` sends it: prompt, keyframe, rubric and lanes with a worker.",
    )


def fill_in_demo(file: Path) -> None:
    """Before the widgets are drawn: Streamlit takes their values from the session then, and only then."""
    with panel_link.errors_told():
        asked = sweepfile.load(file)
        live = [lane.lane_id for lane in panel_link.scheduler().list_lanes() if lane.worker_alive]
        if asked.keyframe is not None:
            content = asked.keyframe.read_bytes()
            st.session_state["kept_keyframe"] = (keyframe_of(content, asked.keyframe.name), content)
        for prompt, path in zip(asked.prompts, asked.rubrics, strict=False):
            panel_rubric_editor.take(prompt, rubric.from_json(path.read_text(encoding="utf-8"), path.name))
        st.session_state.update(panel_form.values(asked, live))


# ---- the keyframe


def ask_keyframe() -> tuple[Keyframe, bytes] | None:
    """Uploads a chosen picture at once: the scheduler checks it, and only a picture it accepts is shown.

    It stays in the form's draft: a browser does not give a chosen file to a page a second time.
    """
    upload = st.file_uploader(
        "Keyframe",
        type=["png", "jpg", "jpeg", "webp"],
        max_upload_size=20,
        key="keyframe",
        help="For image-to-video lanes. PNG, JPEG or WebP, one frame, at most 20 MB and 40 megapixels.",
    )
    if upload is not None:
        content = upload.getvalue()
        keyframe = uploaded(content, upload.name)
        st.session_state["kept_keyframe"] = (keyframe, content) if keyframe is not None else None
        st.session_state["keyframe_chosen"] = True
    elif st.session_state.pop("keyframe_chosen", False):
        st.session_state["kept_keyframe"] = None  # taken away by the uploader's own button
    kept: tuple[Keyframe, bytes] | None = st.session_state.get("kept_keyframe")
    if kept is not None:
        show_keyframe(*kept, is_chosen=upload is not None)
    return kept


def show_keyframe(keyframe: Keyframe, content: bytes, *, is_chosen: bool) -> None:
    words = f"{keyframe.width_px} x {keyframe.height_px} px, {file_size(keyframe.size_bytes)} as PNG"
    st.image(content, caption=words, width=320, alt="The keyframe")
    if not is_chosen:
        st.button("Take the keyframe away", key="no_keyframe", type="tertiary", on_click=forget_keyframe)


def forget_keyframe() -> None:
    st.session_state["kept_keyframe"] = None


def uploaded(content: bytes, file_name: str) -> Keyframe | None:
    """The keyframe of these bytes in the depot; None where it is not accepted, and the page says why."""
    with panel_link.errors_shown():
        return keyframe_of(content, file_name)
    return None


def keyframe_of(content: bytes, file_name: str) -> Keyframe:
    """The keyframe of these bytes in the depot; each picture crosses once per session."""
    done: dict[str, Keyframe] = st.session_state.setdefault("uploaded_keyframes", {})
    digest = hashlib.sha256(content).hexdigest()
    if digest not in done:
        done[digest] = panel_link.scheduler().upload_keyframe(content, file_name=file_name)
    return done[digest]


def show_crops(keyframe: tuple[Keyframe, bytes] | None, verdicts: Mapping[str, LaneVerdict]) -> None:
    """What each lane will see of the keyframe: scaled to cover the lane's size, cut at the centre."""
    found = crops(keyframe[0], verdicts.values()) if keyframe is not None else ()
    if keyframe is None or not found:
        return
    st.subheader("What the lanes see of the keyframe")
    with st.container(horizontal=True):
        for crop in found:
            with st.container(width=260):
                st.image(preview(keyframe[1], crop), width="stretch", alt=f"The keyframe at {crop.words}")
                st.caption(plain(crop.words))


# ---- lanes, parameters, judges


def lane_label(lane: LaneView) -> str:
    warm = ":green-badge[warm]" if lane.worker_alive and lane.runner_warm else ""
    licence = f":gray-badge[{plain(licence_words(lane.licence))}]"
    gated = ":violet-badge[gated]" if lane.gated else ""
    return " ".join(filter(None, (f"**{plain(lane.lane_title)}**", warm, licence, gated)))


def licence_words(licence: str) -> str:
    if licence in ("", "unknown"):
        return "licence unknown"
    return "no licence needed" if licence == "none needed" else licence


def ask_lanes(lanes: Sequence[LaneView]) -> tuple[tuple[str, ...], dict[str, object]]:
    """The chosen lanes, and under each of them an empty place for its verdict."""
    chosen: list[str] = []
    places: dict[str, object] = {}
    by_task = {task: [lane for lane in lanes if lane.task is task and is_offered(lane)] for task in _TASKS}
    offered = {task: group for task, group in by_task.items() if group}
    for column, (task, group) in zip(st.columns(max(len(offered), 1)), offered.items(), strict=False):
        with column:
            st.markdown(f"**{_TASKS[task]}**")
            live = [lane for lane in group if lane.worker_alive]
            choose_all(task, group)
            chosen += ask_each(live, places)
            idle = [lane for lane in group if not lane.worker_alive]
            if idle:
                show_why_idle(idle)
                chosen += ask_each(idle, places)
    # In the order of the catalogue, wherever a lane stands now: a worker that comes or goes changes no request.
    return tuple(lane.lane_id for lane in lanes if lane.lane_id in chosen), places


def is_offered(lane: LaneView) -> bool:
    """A stub lane is for tests: it stands here where somebody started it, or chose it while it was there."""
    return lane.worker_alive or lane.env != services.STUB_ENV or bool(st.session_state.get(f"lane-{lane.lane_id}"))


def ask_each(lanes: Sequence[LaneView], places: dict[str, object]) -> list[str]:
    chosen = []
    for lane in lanes:
        if st.checkbox(lane_label(lane), key=f"lane-{lane.lane_id}", wrap=True):
            chosen.append(lane.lane_id)
        places[lane.lane_id] = st.empty()
    return chosen


def show_why_idle(lanes: Sequence[LaneView]) -> None:
    st.caption(
        f":material/hourglass: **{counted(len(lanes), 'lane')} without a worker.** Their jobs wait until one starts, "
        f"for example `screentest up --lanes {lanes[0].lane_id}` where the stack runs."
    )


def choose_all(task: Task, group: Sequence[LaneView]) -> None:
    """Two shortcuts. A lane without a worker would wait for one: it is chosen by hand or not at all."""
    keys = [f"lane-{lane.lane_id}" for lane in group]
    live = [f"lane-{lane.lane_id}" for lane in group if lane.worker_alive]
    with st.container(horizontal=True):
        st.button(
            "All with a worker",
            key=f"all-{task}",
            on_click=set_lanes,
            args=(live, True),
            type="tertiary",
            disabled=not live,
        )
        st.button("None", key=f"none-{task}", on_click=set_lanes, args=(keys, False), type="tertiary")


def set_lanes(keys: Sequence[str], chosen: bool) -> None:
    for key in keys:
        st.session_state[key] = chosen


def ask_judges(judges: Sequence[LaneView]) -> tuple[str, ...]:
    """The chosen judges; none = those that need no weights, which the scheduler takes by itself."""
    if not judges:
        return ()
    st.subheader("Judges")
    st.caption("None chosen: the pixels of each clip are looked at, nothing else. Random weights are never scored.")
    chosen = []
    for judge in judges:
        tier = panel_budget.TIERS.get(judge.tier, "")
        worker = ":green-badge[worker alive]" if judge.worker_alive else ":orange-badge[no worker]"
        label = f"**{plain(judge.lane_title)}** :gray-badge[{plain(f'tier {judge.tier}: {tier}')}] {worker}"
        if st.checkbox(label, key=f"judge-{judge.lane_id}", wrap=True):
            chosen.append(judge.lane_id)
    return tuple(chosen)


def ask_requested() -> Requested:
    """Generic parameters for every lane; an empty field leaves each lane at its own default."""
    negative_prompt = st.text_area("Negative prompt", key="negative_prompt", height=68)
    left, right = st.columns(2)
    width_px = left.number_input("Width in px", 16, 4096, None, 16, key="width_px", placeholder="lane's own")
    height_px = right.number_input("Height in px", 16, 4096, None, 16, key="height_px", placeholder="lane's own")
    num_frames = left.number_input("Frames", 1, 1000, None, 1, key="num_frames", placeholder="lane's own")
    steps = right.number_input("Steps", 1, 500, None, 1, key="steps", placeholder="lane's own")
    guidance = left.number_input("Guidance scale", 0.0, 50.0, None, 0.5, key="guidance", placeholder="lane's own")
    fps = right.number_input("Frames per second", 1.0, 120.0, None, 1.0, key="fps", placeholder="lane's own")
    return Requested(
        width_px=width_px,
        height_px=height_px,
        num_frames=num_frames,
        steps=steps,
        guidance_scale=guidance,
        fps=fps,
        negative_prompt=negative_prompt.strip() or None,
    )


def ask_memory_cap() -> float | None:
    cap_gib: float | None = st.number_input(
        "Memory cap in GiB",
        1.0,
        1024.0,
        None,
        1.0,
        key="memory_cap_gib",
        placeholder="the whole card",
        help="Device memory that a job may take: how the sweep would run on a smaller card.",
    )
    return cap_gib


def ask_run(lanes: Sequence[LaneView]) -> tuple[str, Weights, bool]:
    left, right = st.columns(2)
    # Defaults by the session's state: a restored draft sets the same keys, and a widget takes one of the two.
    st.session_state.setdefault("seeds", "42")
    st.session_state.setdefault("weights", panel_form.usual_weights(lanes))
    seeds_text = left.text_input("Seeds", key="seeds", help="Whole numbers, separated by commas.") or ""
    choices: tuple[Weights, ...] = tuple(Weights)
    weights = right.selectbox("Weights", choices, index=0, format_func=weights_words, key="weights")
    skip = st.radio(
        "When a lane cannot take part",
        [True, False],
        format_func=lambda skip: "skip it and say why" if skip else "refuse the whole sweep",
        horizontal=True,
        key="skip_impossible",
    )
    return seeds_text, weights, skip


# ---- what it takes


def preflight(draft: Draft) -> dict[str, LaneVerdict]:
    """What each chosen lane says to this draft; asked again only when the draft has changed."""
    if panel_form.problems(draft):
        return {}
    spec = panel_form.spec(replace(draft, judge_lane_ids=()))  # a judge changes nothing for the lanes
    content, verdicts = st.session_state.get("preflight", ("", {}))
    if content != panel_form.content_of(spec):
        verdicts = {}
        with panel_link.errors_shown(), st.spinner("Asking the lanes …"):
            verdicts = {lane.lane_id: lane for lane in panel_link.scheduler().preflight(spec)}
            st.session_state["preflight"] = (panel_form.content_of(spec), verdicts)
    return dict(verdicts)


def show_verdicts(places: Mapping[str, object], verdicts: Mapping[str, LaneVerdict]) -> None:
    """The verdict below each lane, and what the sweep would take in one table."""
    outlooks = [outlook(verdict) for verdict in verdicts.values()]
    for item in outlooks:
        icon, colour = _VERDICTS[verdicts[item.lane_id].verdict]
        why = f": {plain(item.why)}" if item.why else ""
        if item.lane_id in places:
            places[item.lane_id].caption(f":{colour}[{icon} {item.verdict}]{why}")  # type: ignore[attr-defined]
    if not outlooks:
        return
    st.subheader("What it takes")
    st.dataframe(
        [outlook_row(item) for item in outlooks],
        hide_index=True,
        column_config={"Basis": st.column_config.TextColumn(width="medium")},
        alt="Rung, memory, time and energy of each chosen lane",
    )


def outlook_row(item: Outlook) -> dict[str, str]:
    """One lane of the table; why it is so stands below the lane's name."""
    cells = dict(zip(COLUMNS, item.cells, strict=True))
    shown = {name: text for name, text in cells.items() if name != "Why"}
    return {**shown, "Lane": item.lane_title, "Basis": item.basis}


def show_bill(draft: Draft, verdicts: Mapping[str, LaneVerdict]) -> None:
    """The sums of the estimates against the budget, right above the button."""
    if not verdicts:
        return
    taking = [verdicts[lane_id] for lane_id in panel_form.taking_part(draft, verdicts) if lane_id in verdicts]
    cells = len(panel_form.prompts(draft.prompts_text)) * len(panel_form.seeds(draft.seeds_text))
    found = panel_budget.bill(taking, cells)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        with st.container(width="content"):
            st.metric("GPU time in all", found.time_words, width="content")
        with st.container(width="content"):
            st.metric("Energy in all", found.energy_words, width="content")
        hours = st.number_input(
            "Budget in hours", 0.1, 1000.0, None, 0.5, key="budget_h", placeholder="none", width=150
        )
        watt_hours = st.number_input(
            "Budget in Wh", 1.0, 1e6, None, 10.0, key="budget_wh", placeholder="none", width=150
        )
    for words in panel_budget.over_budget(found, hours, watt_hours):
        st.warning(
            f"Over the budget: {plain(words)}. Take lanes or seeds away, or raise it.", icon=":material/warning:"
        )


def show_judge_bills(draft: Draft, verdicts: Mapping[str, LaneVerdict], judges: Sequence[LaneView]) -> None:
    chosen = [judge for judge in judges if judge.lane_id in draft.judge_lane_ids]
    prompts = panel_form.prompts(draft.prompts_text)
    if not chosen or not prompts:
        return
    if draft.weights.is_random:
        st.caption("These weights are random: only pixels are looked at, whatever judge is chosen.")
        return
    cells = panel_form.job_count(draft, verdicts) // len(prompts) if not panel_form.problems(draft) else 0
    bills = panel_budget.judge_bills(chosen, panel_rubric_editor.rubrics(prompts), cells, measured(chosen))
    st.dataframe([item.cells for item in bills], hide_index=True, alt="What each judge would take")


def measured(judges: Sequence[LaneView]) -> dict[str, float]:
    """Seconds per clip of each judge, as the newest sweep that is over tells them; a judge without is left out."""
    return panel_link.kept(
        f"judge_cost_{[judge.lane_id for judge in judges]}", JUDGE_COST_KEPT_S, lambda: _asked(judges)
    )


def _asked(judges: Sequence[LaneView]) -> dict[str, float]:
    client = panel_link.scheduler()
    try:
        over = next((sweep for sweep in client.list_sweeps(limit=20) if sweep.settled is not None), None)
        if over is None:
            return {}
        ids = [judge.lane_id for judge in judges]
        costs = client.judge_sweep(over.record.sweep_id, judge_lane_ids=ids, estimate_only=True).costs
    except ScreentestError:
        return {}  # without an answer the time is unknown, which is what the table then says
    return {cost.lane_id: cost.seconds / cost.jobs for cost in costs if cost.seconds is not None and cost.jobs}


# ---- the button


def show_submit(draft: Draft, verdicts: Mapping[str, LaneVerdict]) -> None:
    wrong = panel_form.problems(draft)
    blocked = panel_form.blocked_by(draft, verdicts)
    for item in wrong:
        st.caption(f":material/arrow_forward: {plain(item.description)}")
    if blocked:
        st.caption(f":red[Refused as it stands by {plain(listed(blocked))}.]")
    jobs = 0 if wrong else panel_form.job_count(draft, verdicts)
    label = f"Submit {counted(jobs, 'job')}" if jobs else "Submit"
    if st.button(label, type="primary", disabled=bool(wrong or blocked), icon=":material/send:", key="submit"):
        submit(draft)


def submit(draft: Draft) -> None:
    prompts = panel_form.prompts(draft.prompts_text)
    faults = panel_rubric_editor.faults(prompts)
    if faults:
        st.error(f"Not sent: {listed(faults)} cannot be used as it stands; what is wrong is said below it.")
        return
    with panel_link.errors_shown():
        send(panel_form.spec(draft, panel_rubric_editor.uploaded(prompts)))


def send(spec: SweepSpec) -> None:
    nonce = st.session_state.setdefault("form_nonce", uuid.uuid4().hex)
    accepted = panel_link.scheduler().submit_sweep(spec, request_id=panel_form.request_id(nonce, spec))
    st.session_state["form_nonce"] = uuid.uuid4().hex
    panel_drafts.drop()
    st.switch_page("panel_pages/sweeps.py", query_params={"sweep": accepted.sweep.record.sweep_id})


def show() -> None:
    panel_drafts.restore()
    st.title("Submit a sweep")
    offer_demo()
    lanes = known_lanes()
    judges = panel_budget.judges(lanes)
    left, right = st.columns([3, 2], gap="large")
    with left:
        title, prompts_text = ask_scene()
        seeds_text, weights, skip = ask_run(lanes)
    with right:
        keyframe = ask_keyframe()
        with st.expander("Negative prompt, size, frames, steps, memory"):
            requested = ask_requested()
            memory_cap_gib = ask_memory_cap()
    panel_rubric_editor.show_rubrics(panel_form.prompts(prompts_text))
    st.subheader("Lanes")
    chosen, places = ask_lanes(lanes)
    judge_lane_ids = ask_judges(judges)
    draft = Draft(
        title=title,
        prompts_text=prompts_text,
        lane_ids=chosen,
        seeds_text=seeds_text,
        weights=weights,
        keyframe=keyframe[0] if keyframe is not None else None,
        requested=requested,
        skip_impossible=skip,
        memory_cap_gib=memory_cap_gib,
        judge_lane_ids=judge_lane_ids,
    )
    verdicts = preflight(draft)
    show_verdicts(places, verdicts)
    show_judge_bills(draft, verdicts, judges)
    show_crops(keyframe, verdicts)
    show_bill(draft, verdicts)
    panel_drafts.keep(
        [*FIELDS, *(f"lane-{lane.lane_id}" for lane in lanes), *(f"judge-{lane.lane_id}" for lane in judges)]
    )
    show_submit(draft, verdicts)


show()
