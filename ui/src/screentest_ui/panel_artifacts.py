"""Links into the depot: asked for side by side, kept until they expire, never waited for longer than a moment."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import streamlit as st

from screentest.client import Client
from screentest.errors import ScreentestError, Unavailable
from screentest.records import ArtifactKind
from screentest_ui import panel_link

PATIENCE_S = 3.0  # a page never waits longer for the depot; what is missing then comes with the next refresh
SPARE = timedelta(minutes=5)  # a link is renewed this long before it expires, so that a clip can be played to its end
AT_ONCE = 8
MOST_BYTES = 256 * 2**20
_KEPT = "depot_links"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An object of the depot: of a job (clip, log, manifest) or of a sweep (a file of its report, by ``name``)."""

    kind: ArtifactKind
    job_id: str = ""
    sweep_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """``url`` "" = not to be had; ``trouble`` says why."""

    url: str = ""
    sha256: str = ""
    size_bytes: int | None = None
    expires_at: datetime | None = None
    trouble: str = ""


def links(wanted: Sequence[Wanted]) -> dict[Wanted, Link]:
    """One link for each object. A player keeps its place over refreshes, because a link stays the same while valid."""
    kept: dict[Wanted, Link] = st.session_state.setdefault(_KEPT, {})
    now = datetime.now(UTC)
    missing = [item for item in dict.fromkeys(wanted) if not _is_valid(kept.get(item), now)]
    fresh = _asked(panel_link.scheduler(), missing)
    kept.update({item: link for item, link in fresh.items() if link.url})
    return {item: fresh.get(item) or kept[item] for item in wanted}


def newest(wanted: Wanted) -> Link:
    """A link that was asked for now: a report is published again and again under the same name."""
    return _asked(panel_link.scheduler(), [wanted])[wanted]


def fetched(link: Link) -> bytes:
    """The object behind a link, checked against its sha256. Unavailable says why it is not to be had here."""
    if not link.url:
        raise Unavailable(link.trouble)
    if link.size_bytes is not None and link.size_bytes > MOST_BYTES:
        raise Unavailable(f"{link.size_bytes / 2**20:.0f} MiB are too much for this page; download it by its link")
    try:
        with urllib.request.urlopen(_from_here(link.url), timeout=PATIENCE_S) as reply:
            content: bytes = reply.read(MOST_BYTES)
    except OSError as error:
        raise Unavailable(f"the depot does not give {urllib.parse.urlsplit(link.url).path} ({error})") from error
    if link.sha256 and hashlib.sha256(content).hexdigest() != link.sha256:
        raise Unavailable("what the depot gave is not what the scheduler promised (sha256); reload the page")
    return content


def _from_here(url: str) -> urllib.request.Request:
    """A link is signed for the browser's name of the depot. A panel in a container goes there by another name,
    SCREENTEST_DEPOT_URL, and says the signed one as its host."""
    signed, inner = urllib.parse.urlsplit(url), urllib.parse.urlsplit(os.environ.get("SCREENTEST_DEPOT_URL", ""))
    if not inner.netloc:
        return urllib.request.Request(url)
    there = signed._replace(scheme=inner.scheme, netloc=inner.netloc)
    return urllib.request.Request(there.geturl(), headers={"Host": signed.netloc})


def _is_valid(known: Link | None, now: datetime) -> bool:
    return known is not None and known.expires_at is not None and known.expires_at - SPARE > now


def _asked(client: Client, wanted: Sequence[Wanted]) -> dict[Wanted, Link]:
    if not wanted:
        return {}
    pool = ThreadPoolExecutor(max_workers=min(len(wanted), AT_ONCE), thread_name_prefix="depot-links")
    try:
        futures = {item: pool.submit(_ask, client, item) for item in wanted}
        wait(futures.values(), timeout=PATIENCE_S)
        return {item: _answer(future) for item, future in futures.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _answer(future: Future[Link]) -> Link:
    if not future.done():
        return Link(
            trouble=f"the depot has not answered within {PATIENCE_S:g} s; it is asked again at the next refresh"
        )
    return future.result()


def _ask(client: Client, wanted: Wanted) -> Link:
    try:
        found = client.get_artifact(
            kind=wanted.kind,
            job_id=wanted.job_id or None,
            sweep_id=wanted.sweep_id or None,
            name=wanted.name,
        )
    except ScreentestError as error:
        return Link(trouble=str(error))
    return Link(
        url=found.url,
        sha256=found.artifact.sha256,
        size_bytes=found.artifact.size_bytes,
        expires_at=found.expires_at,
    )
