"""A small rubric of four beats, and judges that answer about clips which are told by the beats in their windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from screentest.rubric import SCHEMA, WHOLE_CLIP_KINDS, Beat, Element, Kind, Rubric, prompt_sha256
from screentest_reporter.scoring import Judgement, Pixels, Tier

WINDOWS = 8
# What a clip shows in each window, by beat; 0 = nothing of the story.
IN_ORDER = (1, 1, 2, 2, 3, 3, 4, 4)
REVERSED = IN_ORDER[::-1]
FIRST_FRAME = (1,) * WINDOWS
NOTHING = (0,) * WINDOWS
Clip = Sequence[int]
Judge = Callable[[Element, int, Clip], float]


def element(
    name: str, kind: Kind, beat: int | None = None, weight: float = 1, depends_on: tuple[str, ...] = ()
) -> Element:
    return Element(
        id=name,
        kind=kind,
        text=name,
        question=f"Is {name} visible?",
        counter_question=f"Is {name} absent?",
        weight=weight,
        beat=beat,
        depends_on=depends_on,
        flow="zoom_in" if kind == "camera" else None,
    )


RUBRIC = Rubric(
    schema=SCHEMA,
    prompt_sha256=prompt_sha256("stillness"),
    source="author",
    beats=tuple(Beat(n=n, label=f"beat {n}") for n in (1, 2, 3, 4)),
    elements=(
        element("gothic-cathedral", "subject", 1, 2),
        element("brain-chamber", "attribute", 1, 1, ("gothic-cathedral",)),
        element("child", "subject", 1, 2),
        element("doll", "subject", 1),
        element("child-holds-doll", "relation", 1, 1, ("child", "doll")),
        element("cyborg-brain", "subject", 2, 2),
        element("soldier", "subject", 3),
        element("soldier-at-panel", "relation", 3, 1, ("soldier",)),
        element("eye-reflection", "beat", 4, 2),
        element("cracked-dome", "attribute", 4),
        element("dolly-in", "camera"),
        element("gothic-texture", "style"),
        element("text-overlay", "negative", None, 1),
    ),
)
OTHER = Rubric(
    schema=SCHEMA,
    prompt_sha256=prompt_sha256("a picnic"),
    source="author",
    beats=tuple(Beat(n=n, label=f"other {n}") for n in (1, 2, 3, 4)),
    elements=tuple(element(f"other-{n}", "subject", n) for n in (1, 2, 3, 4)),
)


def judgement(
    answers: Mapping[str, tuple[float | None, ...]], rubric: Rubric = RUBRIC, tier: Tier = "c", **more: object
) -> Judgement:
    known: dict[str, object] = {
        "tier": tier,
        "judge_id": f"judge-{tier}",
        "judge_version": "1",
        "method": "logprobs",
        "rubric_sha256": rubric.sha256,
        "answers": answers,
    }
    return Judgement(**{**known, **more})  # type: ignore[arg-type]


def asked(judge: Judge, clip: Clip, rubric: Rubric = RUBRIC, tier: Tier = "c") -> Judgement:
    return judgement({e.id: _row(judge, e, clip) for e in rubric.elements}, rubric, tier)


def _row(judge: Judge, e: Element, clip: Clip) -> tuple[float | None, ...]:
    windows = 1 if e.kind in WHOLE_CLIP_KINDS else WINDOWS
    return tuple(judge(e, window, clip) for window in range(windows))


def seeing(high: float = 0.92, low: float = 0.035, absent: frozenset[str] = frozenset()) -> Judge:
    """An honest judge: high where the window shows the element's beat, low elsewhere. It knows the elements of RUBRIC;
    absent: what the clip does not show, though it shows the beat.
    """

    def judge(e: Element, window: int, clip: Clip) -> float:
        is_known = e in RUBRIC.elements and e.id not in absent and e.kind != "negative"
        shown = any(clip) if e.beat is None else clip[window] == e.beat
        return high if is_known and shown else low

    return judge


def pixels(*flags: str, zoom_in: float | None = None) -> Pixels:
    camera = {} if zoom_in is None else {"zoom_in": zoom_in}
    return Pixels(flags=flags, thresholds_version="vitals/1", camera=camera)  # type: ignore[arg-type]
