"""A published report for the page and for a folder: which files it names, and the same text with other links. Pure."""

from __future__ import annotations

import html
import io
import json
import posixpath
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

from screentest.records import Job
from screentest_ui.panel_text import moment

_LINKS = frozenset({"src", "href", "poster"})
_CSP_SOURCES = re.compile(r"((?:img|media)-src)\b")


class _Files(HTMLParser):
    """Collects the relative links of a page in reading order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in _LINKS and value and is_relative(value):
                self.names[value] = None


def is_relative(link: str) -> bool:
    """Whether a link points into the report's own folder: no scheme, no host, no way out of it."""
    parts = urlsplit(link)
    path = posixpath.normpath(unquote(parts.path))
    inside = not path.startswith(("/", "..")) and path != "."
    return not parts.scheme and not parts.netloc and inside


def files_of(page: str) -> tuple[str, ...]:
    """The files of its folder that the page shows or links to: ``sheets/<job>.jpg``, ``clips/<file>.mp4``."""
    parser = _Files()
    parser.feed(page)
    return tuple(parser.names)


def clip_jobs(jobs: Iterable[Job]) -> dict[str, str]:
    """Job id by the file name of its clip, as a report names it: ``clips/<file>.mp4``."""
    return {f"clips/{posixpath.basename(job.clip.key)}": job.spec.job_id for job in jobs if job.clip is not None}


def with_links(page: str, urls: Mapping[str, str]) -> str:
    """The page as the panel embeds it: relative links replaced, its content policy opened for just those hosts.

    A report allows pictures and clips only from its own folder; embedded they come from the depot. Its links to its own
    sections name the embedded page itself: "#section" alone would open the panel inside the panel.
    """
    page = page.replace('href="#', 'href="about:srcdoc#')
    for name, url in urls.items():
        page = page.replace(f'="{html.escape(name)}"', f'="{html.escape(url)}"')
    hosts = " ".join(sorted({f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in urls.values()}))
    return _opened(page, hosts) if hosts else page


def _opened(page: str, hosts: str) -> str:
    """Only the first policy is the report's own: it stands in the head, before any text of a person."""
    head, mark, rest = page.partition("Content-Security-Policy")
    policy, end, body = rest.partition(">")
    return head + mark + _CSP_SOURCES.sub(rf"\1 {hosts}", policy) + end + body if mark else page


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What ``report.json`` says of itself. ``findings``: as composed, by row: job ids and ``note:<slug>``.

    ``conflicts``: job ids of the clips whose judges disagree by 3 points or more.
    """

    number: int
    is_final: bool
    published_at: datetime
    findings: Mapping[str, str]
    conflicts: frozenset[str] = frozenset()

    @property
    def words(self) -> str:
        state = "final" if self.is_final else "the sweep goes on"
        return f"Revision {self.number}, {state}, published {moment(self.published_at)}"


def revision_of(document: bytes) -> Revision | None:
    """None for a report of another version, or a damaged one."""
    try:
        content = json.loads(document)
        rows = {row["job_id"]: row["finding_original"] for row in content["rows"]}
        notes = {note["id"]: note["original"] or note["text"] for note in content["operator_notes"]}
        return Revision(
            number=int(content["revision"]),
            is_final=bool(content["final"]),
            published_at=datetime.fromisoformat(content["published_at"]),
            findings={**rows, **notes},
            conflicts=frozenset(
                row["job_id"] for row in content["rows"] if (row.get("score") or {}).get("agreement") == "conflict"
            ),
        )
    except (ValueError, KeyError, TypeError):
        return None


def folder(files: Mapping[str, bytes]) -> bytes:
    """A zip of the report's folder; clips and pictures are compressed already."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()
