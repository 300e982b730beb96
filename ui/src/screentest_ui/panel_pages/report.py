"""Report: the published case study of one sweep, to read here and to take away. `?sweep=` names the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from screentest.errors import ScreentestError, Unavailable
from screentest.records import ArtifactKind, Sweep
from screentest_ui import panel_link
from screentest_ui.panel_artifacts import Link, Wanted, fetched, links, newest
from screentest_ui.panel_report import Revision, clip_jobs, files_of, folder, revision_of, with_links
from screentest_ui.panel_text import file_size, moment, plain, tally

EVERY_S = 5.0
# Fixed: Streamlit measures a page with a script of its own, which the report's content policy rightly forbids.
HEIGHT_PX = 1200
DOCUMENTS = ("index.html", "report.md", "report.json")
_SHOWN = "report_shown"


def choose(sweeps: Sequence[Sweep]) -> Sweep:
    """The sweep of the address, or the newest; a choice goes into the address, so that a refresh keeps it."""
    asked = st.query_params.get("sweep", "")
    ids = [sweep.record.sweep_id for sweep in sweeps]
    by_id = {sweep.record.sweep_id: sweep for sweep in sweeps}
    if asked and asked not in by_id:
        by_id[asked] = panel_link.scheduler().get_sweep(asked)
        ids.insert(0, asked)
    index = ids.index(asked) if asked else 0
    chosen = st.selectbox(
        "Sweep", ids, index=index, format_func=lambda sweep_id: label(by_id[sweep_id]), key="report_of"
    )
    st.query_params["sweep"] = chosen
    return by_id[chosen]


def label(sweep: Sweep) -> str:
    return f"{sweep.record.spec.title} ({moment(sweep.record.submitted_at)}, {tally(sweep)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The revision that a person reads: it stays until they ask for a newer one, with its players where they are."""

    sweep_id: str
    page: str
    revision: Revision


def shown_revision(sweep_id: str, revision: Revision) -> Shown:
    """What stands on the page; the first look at a sweep takes what is newest."""
    known: Shown | None = st.session_state.get(_SHOWN)
    if known is None or known.sweep_id != sweep_id:
        page = fetched(newest(_document(sweep_id, DOCUMENTS[0]))).decode()
        known = Shown(sweep_id=sweep_id, page=page, revision=revision)
        st.session_state[_SHOWN] = known
    return known


def newest_revision(sweep_id: str) -> Revision:
    """By its report.json, which is written last: what it lists is there. Unavailable while there is none."""
    link = newest(_document(sweep_id, "report.json"))
    revision = revision_of(fetched(link))
    if revision is None:
        raise Unavailable("the report in the depot is of another version; the reporter writes it anew")
    return revision


def _document(sweep_id: str, name: str) -> Wanted:
    return Wanted(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name=name)


def wanted_files(sweep_id: str, names: Sequence[str]) -> dict[str, Wanted]:
    """Where the files that the page names lie: clips belong to their jobs, all else to the report."""
    jobs = clip_jobs(panel_link.scheduler().list_jobs(sweep_id))
    return {
        name: Wanted(kind=ArtifactKind.CLIP, job_id=jobs[name])
        if name in jobs
        else Wanted(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name=name)
        for name in names
    }


def urls_of(sweep_id: str, page: str) -> dict[str, Link]:
    wanted = wanted_files(sweep_id, files_of(page))
    found = links(list(wanted.values()))
    return {name: found[item] for name, item in wanted.items() if found[item].url}


@st.fragment
def downloads(sweep_id: str, page: str) -> None:
    """The documents one by one, and the whole folder for reading offline."""
    with st.container(horizontal=True, vertical_alignment="center"):
        for name in DOCUMENTS[1:]:
            link = newest(Wanted(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name=name))
            if link.url:
                st.link_button(name, link.url, icon=":material/download:")
        if st.button(
            "Pack it for offline reading",
            icon=":material/folder_zip:",
            help="One zip: the report, its pictures and its clips; it opens without a network.",
        ):
            with panel_link.errors_shown(), st.spinner("Fetching the report's files …"):
                st.session_state["report_zip"] = (sweep_id, packed(sweep_id, page))
        ready_for, content = st.session_state.get("report_zip", ("", b""))
        if ready_for == sweep_id:
            size = file_size(len(content))
            name = f"{sweep_id}.zip"
            st.download_button(f"Download {plain(name)} ({size})", content, name, "application/zip", on_click="ignore")


def packed(sweep_id: str, page: str) -> bytes:
    """The zip of the report's folder: its documents, its pictures and its clips under the names the page uses."""
    files = {"index.html": page.encode()}
    for name in DOCUMENTS[1:]:
        files[name] = fetched(newest(Wanted(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name=name)))
    files.update({name: fetched(link) for name, link in urls_of(sweep_id, page).items() if name not in files})
    return folder(files)


@st.fragment(run_every=EVERY_S)
def show_revision(sweep_id: str, seen: Revision) -> None:
    """Says when a newer revision is out. A small part of its own: the report below is not drawn again for that."""
    with panel_link.errors_shown():
        st.caption(plain(seen.words))
        if newest_revision(sweep_id).number > seen.number:
            st.info("A newer revision is published.", icon=":material/new_releases:")
            if st.button("Read the newest revision", key="newest", type="primary", icon=":material/publish:"):
                st.session_state.pop(_SHOWN, None)
                st.rerun(scope="app")


@st.fragment(run_every=EVERY_S)
def wait_for_report(sweep_id: str) -> None:
    try:
        newest_revision(sweep_id)
    except ScreentestError as error:
        st.info(plain(f"No report of this sweep yet: {error}"), icon=":material/hourglass:")
        return
    st.rerun(scope="app")


def show_report(sweep_id: str) -> None:
    with panel_link.errors_shown():
        try:
            known = shown_revision(sweep_id, newest_revision(sweep_id))
        except ScreentestError:
            wait_for_report(sweep_id)
            return
        show_revision(sweep_id, known.revision)
        downloads(sweep_id, known.page)
        shown = with_links(known.page, {name: found.url for name, found in urls_of(sweep_id, known.page).items()})
        st.iframe(shown, height=HEIGHT_PX, alt="The report")


st.title("Report")
with panel_link.errors_shown():
    known = panel_link.scheduler().list_sweeps()
    if known:
        show_report(choose(known).record.sweep_id)
    else:
        st.info("No sweep yet. Submit one; its report is published while it runs.")
