"""How the report counts and lists things in a sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int, noun: str) -> str:
    """``1 clip``, ``3 clips``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def are(number: int) -> str:
    return "is" if number == 1 else "are"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def listing(items: Sequence[str], limit: int = 12, last: str = "and") -> str:
    """``A, B and C``; a long one ends in ``and 40 more``."""
    shown = list(items[:limit])
    if len(items) > limit:
        return f"{', '.join(shown)} and {len(items) - limit} more"
    return f"{', '.join(shown[:-1])} {last} {shown[-1]}" if len(shown) > 1 else "".join(shown)
