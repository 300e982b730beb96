"""What the page needs to know of the judging, by row: made elsewhere from judgements, votes and ratings. Pure.

Everything may be absent: an absent score is shown as "not scored", never as 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from screentest.rubric import Element, Rubric
from screentest_reporter.controls import Verdict
from screentest_reporter.ranking import Ranked
from screentest_reporter.scoring import SEEN, ElementScore, Score
from screentest_reporter.votes import Preferred


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    """One clip against one rubric. ``finding``: the scored line without a full stop, "" = the table's own stands.

    ``controls``: of the judge that the number follows most; None where no judge answered.
    """

    rubric: Rubric
    score: Score
    finding: str = ""
    controls: Verdict | None = None

    @property
    def text(self) -> str:
        """As the column "Prompt match" shows it: ``3.5/10``."""
        return "not scored" if self.score.score10 is None else f"{self.score.score10:.1f}/10"

    @property
    def printed(self) -> str:
        """The number with all that belongs to it: ``6.3 ± 1.5, controls 5/5``."""
        has_controls = self.controls is not None and self.score.score10 is not None
        return f"{self.score.text}, {self.controls.text}" if has_controls and self.controls else self.score.text

    @property
    def why_greyed(self) -> str:
        """Why the number cannot be believed; empty where it can."""
        return self.controls.why_greyed if self.controls is not None else ""

    @property
    def interval_text(self) -> str:
        """``2.0 to 5.0``; empty where nothing is scored."""
        low, high = self.score.low, self.score.high
        return "" if low is None or high is None else f"{low:.1f} to {high:.1f}"

    @property
    def elements(self) -> tuple[tuple[Element, ElementScore | None], ...]:
        """Every element of the rubric in its order; None where no judge answered about this clip."""
        parts = self.score.parts
        found = {element.element_id: element for element in parts.elements} if parts else {}
        return tuple((element, found.get(element.id)) for element in self.rubric.elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeVerdict:
    """What the five controls say about one judge in this sweep."""

    judge_id: str
    judge_title: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyframeScore:
    """The keyframe of the sweep against the rubric of one prompt: what a lane that starts from it begins with.

    ``presences``: by element id, 0..1; None = not judged.
    """

    prompt_index: int
    rubric: Rubric
    presences: Mapping[str, float | None]

    @property
    def shown(self) -> tuple[Element, ...]:
        return tuple(e for e, presence in self._judged() if presence >= SEEN)

    @property
    def missing(self) -> tuple[Element, ...]:
        """Judged and not there."""
        return tuple(e for e, presence in self._judged() if presence < SEEN)

    def _judged(self) -> Iterator[tuple[Element, float]]:
        """Without what a picture cannot show (a camera move) and what nobody wants to see (a negative)."""
        for element in self.rubric.elements:
            presence = self.presences.get(element.id)
            if presence is not None and element.kind not in ("camera", "negative"):
                yield element, presence


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of one sweep. ``clips`` by job id; ``ranked`` by prompt index, as `ranking.ranked` gives it; ``people``: the same
    of blind pairs.

    ``pending``: judge jobs that have not ended yet. ``ratings``: how many ratings and votes of people are in it.
    ``not_scored``: why nothing is scored, for the page's own sentence.
    """

    clips: Mapping[str, ClipScore] = field(default_factory=lambda: MappingProxyType({}))
    ranked: Mapping[int, tuple[Ranked, ...]] = field(default_factory=lambda: MappingProxyType({}))
    judges: tuple[JudgeVerdict, ...] = ()
    keyframe: tuple[KeyframeScore, ...] = ()
    people: Mapping[int, tuple[Preferred, ...]] = field(default_factory=lambda: MappingProxyType({}))
    pending: int = 0
    ratings: int = 0
    not_scored: str = "no judge was asked"


NO_SCORES = Scores()
