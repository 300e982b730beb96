"""Submit: one scene, the lanes it goes through, and what each lane will make of it before anything is queued."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence

import streamlit as st

from screentest.records import Keyframe, LaneVerdict, LaneView, Requested, SweepSpec, Task, Verdict, Weights
from screentest_ui import panel_form, panel_link
from screentest_ui.outlook import COLUMNS, Outlook, outlook
from screentest_ui.panel_form import Draft
from screentest_ui.panel_text import counted, file_size, listed, plain, weights_words

_TASKS = {Task.T2V: "Text to video", Task.I2V: "Image to video", Task.T2I: "Text to image"}
_VERDICTS = {
    Verdict.OK: (":material/check_circle:", "green"),
    Verdict.FIXED: (":material/build_circle:", "blue"),
    Verdict.REFUSED: (":material/cancel:", "red"),
    Verdict.NOT_PREFLIGHTED: (":material/help:", "orange"),
}


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


def ask_keyframe() -> Keyframe | None:
    """Uploads a chosen picture at once: the scheduler checks it, and only a picture it accepts is shown."""
    upload = st.file_uploader(
        "Keyframe",
        type=["png", "jpg", "jpeg", "webp"],
        max_upload_size=20,
        key="keyframe",
        help="For image-to-video lanes. PNG, JPEG or WebP, one frame, at most 20 MB and 40 megapixels.",
    )
    if upload is None:
        return None
    content = upload.getvalue()
    keyframe = uploaded(content, upload.name)
    if keyframe is not None:
        words = f"{keyframe.width_px} x {keyframe.height_px} px, {file_size(keyframe.size_bytes)} as PNG"
        st.image(content, caption=words, width=320, alt="The keyframe")
    return keyframe


def uploaded(content: bytes, file_name: str) -> Keyframe | None:
    """The keyframe of these bytes in the depot; each picture crosses once per session."""
    done: dict[str, Keyframe] = st.session_state.setdefault("uploaded_keyframes", {})
    digest = hashlib.sha256(content).hexdigest()
    if digest not in done:
        with panel_link.errors_shown():
            done[digest] = panel_link.scheduler().upload_keyframe(content, file_name=file_name)
    return done.get(digest)


def lane_label(lane: LaneView) -> str:
    worker = ":green-badge[worker alive]" if lane.worker_alive else ":orange-badge[no worker]"
    licence = f":gray-badge[{plain(licence_words(lane.licence))}]"
    gated = ":violet-badge[gated]" if lane.gated else ""
    return f"**{plain(lane.lane_title)}** {worker} {licence} {gated}".strip()


def licence_words(licence: str) -> str:
    return "licence unknown" if licence in ("", "unknown") else licence


def ask_lanes(lanes: Sequence[LaneView]) -> tuple[tuple[str, ...], dict[str, object]]:
    """The chosen lanes, and under each of them an empty place for its verdict."""
    chosen: list[str] = []
    places: dict[str, object] = {}
    by_task = {task: [lane for lane in lanes if lane.task is task] for task in _TASKS}
    offered = {task: group for task, group in by_task.items() if group}
    for column, (task, group) in zip(st.columns(max(len(offered), 1)), offered.items(), strict=False):
        with column:
            st.markdown(f"**{_TASKS[task]}**")
            choose_all(task, group)
            for lane in group:
                if st.checkbox(lane_label(lane), key=f"lane-{lane.lane_id}", wrap=True):
                    chosen.append(lane.lane_id)
                places[lane.lane_id] = st.empty()
    return tuple(chosen), places


def choose_all(task: Task, group: Sequence[LaneView]) -> None:
    """Two shortcuts. A lane without a worker would wait for one: it is chosen by hand or not at all."""
    keys = [f"lane-{lane.lane_id}" for lane in group]
    live = [f"lane-{lane.lane_id}" for lane in group if lane.worker_alive]
    with st.container(horizontal=True):
        st.button("All with a worker", key=f"all-{task}", on_click=set_lanes, args=(live, True), type="tertiary")
        st.button("None", key=f"none-{task}", on_click=set_lanes, args=(keys, False), type="tertiary")


def set_lanes(keys: Sequence[str], chosen: bool) -> None:
    for key in keys:
        st.session_state[key] = chosen


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
    seeds_text = left.text_input("Seeds", value="42", key="seeds", help="Whole numbers, separated by commas.")
    choices: tuple[Weights, ...] = tuple(Weights)
    usual: int = choices.index(panel_form.usual_weights(lanes))
    weights = right.selectbox("Weights", choices, index=usual, format_func=weights_words, key="weights")
    skip = st.radio(
        "When a lane cannot take part",
        [True, False],
        format_func=lambda skip: "skip it and say why" if skip else "refuse the whole sweep",
        horizontal=True,
        key="skip_impossible",
    )
    return seeds_text, weights, skip


def preflight(draft: Draft) -> dict[str, LaneVerdict]:
    """What each chosen lane says to this draft; asked again only when the draft has changed."""
    if panel_form.problems(draft):
        return {}
    spec = panel_form.spec(draft)
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
        submit(panel_form.spec(draft))


def submit(spec: SweepSpec) -> None:
    nonce = st.session_state.setdefault("form_nonce", uuid.uuid4().hex)
    with panel_link.errors_shown():
        accepted = panel_link.scheduler().submit_sweep(spec, request_id=panel_form.request_id(nonce, spec))
        st.session_state["form_nonce"] = uuid.uuid4().hex
        st.switch_page("panel_pages/sweeps.py", query_params={"sweep": accepted.sweep.record.sweep_id})


def show() -> None:
    st.title("Submit a sweep")
    lanes = known_lanes()
    left, right = st.columns([3, 2], gap="large")
    with left:
        title, prompts_text = ask_scene()
        seeds_text, weights, skip = ask_run(lanes)
    with right:
        keyframe = ask_keyframe()
        with st.expander("Negative prompt, size, frames, steps, memory"):
            requested = ask_requested()
            memory_cap_gib = ask_memory_cap()
    st.subheader("Lanes")
    chosen, places = ask_lanes(lanes)
    draft = Draft(
        title=title,
        prompts_text=prompts_text,
        lane_ids=chosen,
        seeds_text=seeds_text,
        weights=weights,
        keyframe=keyframe,
        requested=requested,
        skip_impossible=skip,
        memory_cap_gib=memory_cap_gib,
    )
    button = st.container()
    verdicts = preflight(draft)
    show_verdicts(places, verdicts)
    with button:
        show_submit(draft, verdicts)


show()
