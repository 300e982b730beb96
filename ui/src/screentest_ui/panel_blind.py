"""Clips without a name: the panel serves their bytes itself, because a link into the depot names the lane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import streamlit as st
from streamlit import runtime

from screentest.errors import ScreentestError
from screentest_ui.panel_artifacts import Link, Wanted, fetched, links

# Of the clips of one page and the next one, for all who look: a refresh reads nothing again.
KEPT_CLIPS = 8
MP4 = "video/mp4"
# The depot's own words name the key, and the key names the lane.
NOT_TO_BE_HAD = "the depot does not give this clip now; reload the page, or pass it over"
_HEADER_BYTES = 8
_LARGE_HEADER_BYTES = 16


def blind_links(clips: Sequence[Wanted], place: str) -> dict[Wanted, Link]:
    """A link for each clip that says nothing of where it came from. ``place``: of the page, unique on it.

    The address is made of the content. The browser may ask for any range of it, as long as the page shows it.
    """
    given = links(clips)
    return {clip: _blind(given[clip], f"{place}-{number}") for number, clip in enumerate(clips)}


def _blind(link: Link, coordinates: str) -> Link:
    try:
        content = _nameless_clip(link.sha256 or link.url, link)
    except ScreentestError:
        return Link(trouble=NOT_TO_BE_HAD)
    path = runtime.get_instance().media_file_mgr.add(content, MP4, coordinates)
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return Link(url=f"/{base}{path}" if base else path)


@st.cache_data(max_entries=KEPT_CLIPS, show_spinner=False)
def _nameless_clip(content_id: str, _link: Link) -> bytes:
    """Raises Unavailable as `fetched`. ``content_id``: what it is kept by; a link is signed anew every few hours."""
    return nameless(fetched(_link))


def nameless(mp4: bytes) -> bytes:
    """The same clip without its title and comment, which name its model: their box becomes free space of the same size,
    so that no frame moves. Source: ISO/IEC 14496-12, boxes moov, udta and free.
    """
    named = bytearray(mp4)
    for kind, _, begin, end in _boxes(mp4, 0, len(mp4)):
        for inner, at, inside, stop in _boxes(mp4, begin, end) if kind == b"moov" else ():
            if inner == b"udta":
                named[at + 4 : at + 8] = b"free"
                named[inside:stop] = bytes(stop - inside)
    return bytes(named)


def _boxes(mp4: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """(type, where it begins, where its content does, where both end) of each box; none where the bytes are no MP4."""
    while at + _HEADER_BYTES <= end:
        size, header = int.from_bytes(mp4[at : at + 4], "big"), _HEADER_BYTES
        if size == 1:
            size, header = int.from_bytes(mp4[at + 8 : at + 16], "big"), _LARGE_HEADER_BYTES
        stop = at + size if size else end  # 0: up to the end of the file
        if stop > end or stop < at + header:
            return
        yield mp4[at + 4 : at + 8], at, at + header, stop
        at = stop
