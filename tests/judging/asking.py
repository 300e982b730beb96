"""What the tests ask a judge: rubrics of toy stories, and a judge in a process of its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from screentest.rubric import SCHEMA, Beat, Element, Kind, Rubric, prompt_sha256
from screentest_reporter.scoring import Judgement, Pixels
from screentest_worker.judgements import questions
from tests.integration.runner_process import ROOT, RUNNER_SOURCE, env_python
from tests.judging.scenes import BACKGROUNDS, COLOURS, SHAPES, Story, Thing, clip, write_mp4
from tests.judging.scenes import Kind as ClipKind

FIXTURES: Final = ROOT / "tests" / "fixtures"
TINY_SIGLIP: Final = FIXTURES / "tiny_siglip"
ALIVE: Final = Pixels(flags=(), thresholds_version="vitals/1", camera={})


def child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{RUNNER_SOURCE}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}


# ---- rubrics


def rubric_of(story: Story, *, is_short: bool = False) -> Rubric:
    """Each beat by its thing, and unless it is short, by its colour alone; and what must not be there."""
    prompt = ", then ".join(map(str, story.things))
    told = list(enumerate(story.things, start=1))
    elements = [element for n, thing in told for element in _of_beat(n, thing)[: 1 if is_short else 2]]
    negative = () if is_short else (_element("noise", "negative", "random noise"),)
    return Rubric(
        schema=SCHEMA,
        prompt_sha256=prompt_sha256(prompt),
        source="author",
        beats=tuple(Beat(n=n, label=str(thing)) for n, thing in told),
        elements=(*elements, *negative),
    )


def _of_beat(n: int, thing: Thing) -> tuple[Element, Element]:
    return (
        _element(f"thing-{n}", "subject", str(thing), n, weight=2, swaps=_swaps(thing)),
        _element(f"colour-{n}", "attribute", f"a {thing.colour} shape", n, depends_on=(f"thing-{n}",)),
    )


def _swaps(thing: Thing) -> tuple[str, ...]:
    """Another colour, another shape."""
    return str(other_colour(thing)), str(other_shape(thing))


def places_of(story: Story) -> tuple[Element, Element]:
    """Where it is, and where it is not."""
    other = _after(story.background, list(BACKGROUNDS))
    return (
        _element("place", "style", f"a {story.background} background"),
        _element("elsewhere", "style", f"a {other} background"),
    )


def _element(name: str, kind: Kind, text: str, beat: int | None = None, **more: Any) -> Element:
    return Element(
        id=name,
        kind=kind,
        text=text,
        question=f"Is {text} visible?",
        counter_question=f"Is there no sign of {text}?",
        beat=beat,
        **more,
    )


def other_colour(thing: Thing) -> Thing:
    return Thing(_after(thing.colour, list(COLOURS)), thing.shape)


def other_shape(thing: Thing) -> Thing:
    return Thing(thing.colour, _after(thing.shape, SHAPES))


def _after(name: str, names: Sequence[str]) -> str:
    return names[(names.index(name) + 2) % len(names)]


# ---- requests and answers


def request_of(path: Path, rubric: Rubric, other: Rubric | None = None, **more: Any) -> dict[str, Any]:
    """other: asks for the controls."""
    asked: dict[str, Any] = {
        "purpose": "clip" if other is None else "controls",
        "media_path": str(path),
        "questions": questions(rubric),
        "windows": rubric.window_count,
        "asked": {},
    }
    if other is not None:
        asked |= {"other_questions": questions(other), "other_windows": other.window_count}
    return {**asked, **more}


def made_clip(folder: Path, story: Story, kind: ClipKind) -> Path:
    return write_mp4(folder / f"{story.seed}-{kind}.mp4", clip(story, kind))


def order_of(
    adapter: str, requests: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None = None, **load: Any
) -> dict[str, Any]:
    """A judge with these settings, loaded with `weights_dir` or `endpoint`, and what it is asked."""
    lane = {"id": f"test-{adapter}", "adapter": adapter, "settings": dict(settings or {})}
    return {"lane": lane, "load": load, "requests": list(requests)}


def ask_judges(orders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What tests/judging/ask.py found, per order."""
    found: list[dict[str, Any]] = json.loads(run_in_judge_env("tests.judging.ask", json.dumps(list(orders))))
    return found


def run_in_judge_env(module: str, stdin: str = "", *arguments: str) -> str:
    """Last line that the module printed."""
    result = subprocess.run(
        [env_python("judge"), "-m", module, *arguments],
        input=stdin,
        env=child_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


def judgement_of(part: Mapping[str, Any], rubric: Rubric, answers: Mapping[str, Any] | None = None) -> Judgement:
    """The judge's part as the reporter reads it. answers: those of a control."""
    rows = part["answers"] if answers is None else answers
    return Judgement(
        tier=part["tier"],
        judge_id="test",
        judge_version="1",
        method=part["method"],
        rubric_sha256=rubric.sha256,
        answers={key: tuple(row) for key, row in rows.items()},
        badges=tuple(part["badges"]),
    )
