"""Words and numbers as the panel shows them. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from screentest.records import Sweep, Weights

UNKNOWN = "unknown"
LOG_LINES = 200
# Of the table's font, read off a picture: "SkyReels V2 DF 14B 540P" takes 6.2 px a character.
CHARACTER_PX = 6.8
CELL_PADDING_PX = 20
RANDOM_WEIGHTS = "random weights"
RANDOM_WEIGHTS_HELP = (
    "The weights are random: this sweep shows what runs, how long it takes and what it needs, "
    "never what a picture looks like. Nothing of it is scored."
)

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
# Links (http://, www., a@b) and :icons: are found in the finished text, where a backslash no longer counts: a word
# joiner, which has no width, parts them. A port (host:50051) stays fit for copying.
_FOUND_LATER = re.compile(r"(:(?=[A-Za-z_+/-]|\d+:)|@|\bwww(?=\.))", re.IGNORECASE)
_WORD_JOINER = "\u2060"


def plain(text: str) -> str:
    """Text that Streamlit's Markdown shows literally, on one line.

    Every ASCII punctuation mark gets a backslash: HTML, links, images, ``:red[...]`` directives and ``$math$`` of a
    prompt, a title or an error message stay text; so do addresses and icon names.
    """
    line = _FOUND_LATER.sub(rf"\1{_WORD_JOINER}", " ".join(text.split()))
    return _PUNCTUATION.sub(r"\\\1", line)


def shortened(text: str, characters: int = 120) -> str:
    """The text on one line, cut at a word where it is too long."""
    line = " ".join(text.split())
    if len(line) <= characters:
        return line
    return line[:characters].rsplit(" ", 1)[0].rstrip(",.;:") + " …"


def last_lines(text: str, lines: int = LOG_LINES) -> str:
    """The end of a log; says how much stands before it."""
    found = text.rstrip().splitlines()
    left_out = len(found) - lines
    kept = found[-lines:]
    return "\n".join([f"… {counted(left_out, 'line')} before these", *kept] if left_out > 0 else kept)


def duration(seconds: float | None) -> str:
    """``4.2 s``, ``5 min 44 s``, ``2 h 0 min``; "unknown" for None."""
    if seconds is None:
        return UNKNOWN
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def gib(size_bytes: float | None) -> str:
    """Bytes in GiB; "unknown" for None (unified memory: the driver does not say)."""
    return UNKNOWN if size_bytes is None else f"{size_bytes / 2**30:.1f} GiB"


def file_size(size_bytes: int) -> str:
    """Bytes as a person reads a file's size."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    return f"{size_bytes / 1024:.0f} KiB" if size_bytes < 2**20 else f"{size_bytes / 2**20:.1f} MiB"


def moment(at: datetime) -> str:
    """A time of an event: everything the project writes down is UTC."""
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def counted(number: int, noun: str) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def tally(sweep: Sweep) -> str:
    """The counts of a sweep that are not zero, in the words of the model table: ``3 completed, 1 failed``."""
    counts = sweep.counts
    words = ("running", "queued", "completed", "failed", "refused", "cancelled")
    return ", ".join(f"{getattr(counts, word)} {word}" for word in words if getattr(counts, word)) or "no jobs"


def column_px(texts: Iterable[str]) -> int:
    """How wide a table's column must be, in px, to show each of these texts whole."""
    return CELL_PADDING_PX + math.ceil(CHARACTER_PX * max(map(len, texts), default=0))


def weights_words(weights: Weights) -> str:
    """What a choice of weights means, as the Submit page offers it."""
    return {
        Weights.HUB: "hub: the published checkpoint",
        Weights.MINIATURE: "miniature: a tiny random copy (rehearsal)",
        Weights.FULL_RANDOM: "full-random: full size, random values (dress rehearsal)",
    }[weights]
