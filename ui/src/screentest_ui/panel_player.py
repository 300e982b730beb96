"""The synced player: up to four clips on one transport, or a blind pair that is answered by key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import streamlit as st

from screentest.records import PairOutcome

MOST_CLIPS = 4  # more of them are too small to compare, and each one takes a decoder of the browser
_HERE = Path(__file__).parent
_HTML = """
<div class="player" tabindex="-1">
  <div class="clips"></div>
  <div class="transport">
    <button data-do="toggle" type="button">Play</button>
    <button data-do="back" type="button" aria-label="One frame back">−1</button>
    <button data-do="on" type="button" aria-label="One frame on">+1</button>
    <input class="scrub" type="range" min="0" max="1" step="0.0001" value="0" aria-label="Position">
    <span class="clock" aria-live="off"></span>
    <select class="rate" aria-label="Speed"><option value="0.25">0.25x</option><option value="0.5">0.5x</option>
      <option value="1" selected>1x</option></select>
    <button class="of-several" data-do="flip" type="button" aria-label="Show one clip at a time">A/B</button>
    <label class="of-several"><input class="stretch" type="checkbox"> same length</label>
    <span class="keys"><kbd>K</kbd> play <kbd>,</kbd> <kbd>.</kbd> frame <kbd>F</kbd> A/B <kbd>0</kbd> start</span>
  </div>
  <div class="answers">
    <button data-do="answer" data-with="left" type="button"><kbd>1</kbd> Left follows it better</button>
    <button data-do="answer" data-with="right" type="button"><kbd>2</kbd> Right follows it better</button>
    <button data-do="answer" data-with="tie" type="button"><kbd>3</kbd> Tie</button>
    <button data-do="answer" data-with="both-bad" type="button"><kbd>4</kbd> Both bad</button>
  </div>
</div>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """One clip in the player. ``id`` names it to the browser: the player is built anew when the ids change."""

    id: str
    url: str
    label: str
    fps: float


def player(screens: Sequence[Screen], *, key: str) -> None:
    """Clips side by side: scrub one and all follow; frame steps, 0.25x, A/B, and one length for clips of several."""
    _mounted()(key=key, data=_data(screens, key, is_pair=False))


def pair(left: Screen, right: Screen, *, key: str, on_answer: Callable[[PairOutcome], None]) -> None:
    """Two clips in a loop and four answers, by button or by the keys 1 to 4."""

    def answered() -> None:
        answer = st.session_state[key]["answer"]
        if answer is not None:
            on_answer(PairOutcome(answer))

    _mounted()(key=key, data=_data((left, right), key, is_pair=True), on_answer_change=answered)


def _data(screens: Sequence[Screen], key: str, *, is_pair: bool) -> dict[str, object]:
    return {"clips": [asdict(screen) for screen in screens], "pair": is_pair, "place": key}


def _mounted() -> Callable[..., object]:
    """Registered at each call, for the runtime that draws the page: an equal definition is taken as the same one."""
    css, js = (_HERE.joinpath(f"panel_player.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return st.components.v2.component("screentest_player", html=_HTML, css=css, js=js)
