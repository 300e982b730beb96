"""What a judge's lane makes of a job: its order to the runner, what it refuses, and the judgement that it leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from screentest import judges, rubric
from screentest.errors import BadRequest
from screentest.judges import JudgeLane
from screentest.records import (
    Artifact,
    ArtifactKind,
    FailureClass,
    JobSpec,
    Judged,
    JudgementFacts,
    JudgePurpose,
    Outcome,
    RubricRef,
    Verdict,
)
from screentest.rubric import Beat, Element, Rubric
from screentest_runner import protocol
from screentest_runner.judging.endpoint import Settings
from screentest_runner.judging.presence import presence
from screentest_worker import judge_preflight, judgements, outcome
from screentest_worker import weights_folder as layout
from screentest_worker.device_memory import DeviceMemory
from screentest_worker.findings import Check
from screentest_worker.judge_preflight import Endpoint, Facts
from screentest_worker.main import load_lane
from tests.contract.examples import JUDGE_JOB

ROOT = Path(__file__).parents[2]
JUDGES = ROOT / "deploy" / "judges"
GIB = 2**30


def judge_of(name: str) -> JudgeLane:
    return judges.load_judge(JUDGES / f"{name}.toml")


def spec_for(judge: JudgeLane, **changes: Any) -> JobSpec:
    return replace(JUDGE_JOB, **{"lane_id": judge.id, "lane_digest": judge.digest, **changes})


def asked(*, cuts: int = 1) -> Rubric:
    return Rubric(
        schema=rubric.SCHEMA,
        prompt_sha256=rubric.prompt_sha256("a child"),
        source="author",
        beats=tuple(Beat(n=n, label="a beat", cut_expected=n <= cuts) for n in (1, 2)),
        elements=(
            Element(id="child", kind="subject", text="a child", question="A child?", counter_question="No child?"),
            Element(id="dolly", kind="camera", text="moves in", question="In?", counter_question="Not in?"),
        ),
    )


# ---- what it asks


def test_questions_are_what_the_runner_reads() -> None:
    from screentest_runner.judging import questions

    child, dolly = questions.read(judgements.questions(asked()))
    assert (child.id, child.kind, child.whole_clip, child.swaps) == ("child", "subject", False, ())
    assert dolly.whole_clip  # a camera move has no window


def test_every_judge_that_ships_is_told_from_a_model_by_its_file() -> None:
    assert isinstance(load_lane(JUDGES / "pixels.toml"), JudgeLane)
    assert not isinstance(load_lane(ROOT / "deploy" / "lanes" / "stub.toml"), JudgeLane)
    with pytest.raises(BadRequest, match="no such lane file"):
        load_lane(ROOT / "absent.toml")


# ---- what it refuses


def test_judge_that_lacks_nothing_is_admitted() -> None:
    judge = judge_of("pixels")
    decision = judge_preflight.decide(Facts(judge=judge), spec_for(judge))
    assert (decision.verdict, decision.first_rung, decision.problems) == (Verdict.OK, 0, ())


def test_job_of_a_changed_judge_is_refused_before_anything_else() -> None:
    judge = judge_of("pixels")
    decision = judge_preflight.decide(Facts(judge=judge, missing_env="/nowhere"), spec_for(judge, lane_digest="0" * 64))
    assert [problem.check for problem in decision.problems] == [Check.LANE]
    assert "has changed since judging was planned" in decision.reason


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    judge = judge_of("siglip2-base")
    found = Facts(
        judge=replace(judge, settings={"dtype": "int4", "taste": 1}),
        missing_env="/nowhere/python",
        weights=layout.read(tmp_path / "absent"),
        memory=DeviceMemory(unified=False, free_bytes=0, ceiling_bytes=0),
    )
    decision = judge_preflight.decide(found, spec_for(judge))
    assert [problem.check for problem in decision.problems] == [
        Check.ENV,
        Check.SIGNATURE,
        Check.DTYPE,
        Check.LAYOUT,
    ]
    assert all(problem.reason and problem.fix for problem in decision.problems)


def test_controls_without_another_prompt_are_refused() -> None:
    judge = judge_of("pixels")
    assert JUDGE_JOB.judged is not None
    lone = replace(JUDGE_JOB.judged, purpose=JudgePurpose.CONTROLS, other_rubric=None)
    decision = judge_preflight.decide(Facts(judge=judge), spec_for(judge, judged=lone))
    assert decision.verdict is Verdict.REFUSED
    nothing = judge_preflight.decide(Facts(judge=judge), spec_for(judge, judged=None))
    assert nothing.reason == "the job names nothing to judge"


@pytest.mark.parametrize(
    ("endpoint", "missing_key", "words"),
    [
        (None, None, "told of no server"),
        (Endpoint(base_url="http://ada:secret@here/v1", model=""), None, "not told which model"),
        (Endpoint(base_url="http://here/v1", model="m", key_file="k"), "k", "key is not there: k"),
    ],
)
def test_endpoint_without_server_model_or_key_is_refused(
    endpoint: Endpoint | None, missing_key: str | None, words: str
) -> None:
    judge = judge_of("endpoint")
    decision = judge_preflight.decide(Facts(judge=judge, endpoint=endpoint, missing_key=missing_key), spec_for(judge))
    assert len(decision.problems) == 1
    assert words in decision.reason
    assert "secret" not in decision.reason  # it becomes the cause that a report shows


def test_judge_that_does_not_fit_says_who_holds_the_memory() -> None:
    judge = judge_of("qwen3-vl-8b")
    full = DeviceMemory(unified=False, free_bytes=8 * GIB, ceiling_bytes=20 * GIB, foreign=("ollama holds 4.0 GiB",))
    short = judge_preflight.shortage(judge, full)
    assert short is not None
    assert (short.has_lower_rung, short.fix) == (
        False,
        "stop what else holds the device's memory, then judge again",
    )
    assert "needs 22.0 GiB, 8.0 GiB are free (ollama holds 4.0 GiB)" in short.reason
    # our own runners will be gone when its turn comes, and still there is too little
    [problem] = judge_preflight.decide(Facts(judge=judge, memory=full), spec_for(judge)).problems
    assert "20.0 GiB are free" in problem.reason
    assert judge_preflight.shortage(judge, replace(full, free_bytes=None)) is None


def test_settings_are_those_that_the_runner_reads() -> None:
    assert judge_preflight.SETTINGS.keys() == judges.TIER_OF.keys()
    assert judge_preflight.SETTINGS["endpoint"] == set(Settings.__slots__)
    for path in JUDGES.glob("*.toml"):
        judge = judges.load_judge(path)
        assert judge.settings.keys() <= judge_preflight.SETTINGS[judge.adapter]


def checkpoint(folder: Path, *without: str) -> Path:
    """The smallest folder in the layout of transformers."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    files = {
        "config.json": b"{}",
        "preprocessor_config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": len(header).to_bytes(8, "little") + header + bytes(4),
    }
    for name, data in files.items():
        if name not in without:
            (folder / name).write_bytes(data)
    return folder


def problems_of(folder: Path) -> list[str]:
    judge = judge_of("siglip2-base")
    found = Facts(judge=judge, weights=layout.read(folder))
    return [problem.reason for problem in judge_preflight.decide(found, spec_for(judge)).problems]


def test_complete_checkpoint_is_no_problem(tmp_path: Path) -> None:
    assert problems_of(checkpoint(tmp_path)) == []


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "holds no weights"),
        ("tokenizer.json", "has no vocabulary"),
        ("preprocessor_config.json", "how pictures are read"),
    ],
)
def test_part_that_a_checkpoint_lacks_is_named(tmp_path: Path, missing: str, words: str) -> None:
    [reason] = problems_of(checkpoint(tmp_path, missing))
    assert words in reason


def test_cut_weights_and_pickles_are_not_loaded(tmp_path: Path) -> None:
    cut = checkpoint(tmp_path) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-2])
    assert "model.safetensors" in problems_of(tmp_path)[0]
    cut.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "only as pickle" in problems_of(tmp_path)[0]


# ---- what it leaves

REF = RubricRef(prompt_index=0, key="rubrics/a.json", sha256="a" * 64, size_bytes=1, rubric_sha256="b" * 64)
JUDGED = Judged(
    purpose=JudgePurpose.CONTROLS,
    job_id="p0-s1-0123456789ab",
    lane_id="wan-2-1-t2v-1-3b",
    key="x/clips/y.mp4",
    sha256="c" * 64,
    size_bytes=5,
    rubric=REF,
    other_rubric=replace(REF, rubric_sha256="d" * 64),
)
ANSWER = protocol.Judged(
    attempt_id="a",
    judgement_path="unused",
    method="embedding",
    calls=3,
    badges=["test judge"],
    timings_s={"judging": 1.25},
    versions={"torch": "2.13.0", "numpy": "2.4.6"},
    loads=1,
    presence=0.5,
)


def found(**changes: Any) -> bytes:
    content = {
        "tier": "b",
        "method": "embedding",
        "badges": [],
        "answers": {"child": [0.5, None]},
        "details": {},
        "pixels": None,
        "controls": [{"control": "wrong-prompt", "answers": {}}, {"control": "black", "answers": {}}],
        "calls": 3,
        "windows": 2,
        **changes,
    }
    return json.dumps(content).encode()


def test_judgement_says_what_was_judged_by_whom_and_with_which_rubric() -> None:
    judge = judge_of("siglip2-base")
    spec = spec_for(judge, weights_revision="abc123")
    built = judgements.build(spec, JUDGED, judge, ANSWER, found())
    assert built["judge_version"] == f"{judge.digest[:12]}, weights abc123, numpy 2.4.6, torch 2.13.0"
    assert (built["job_id"], built["clip_lane_id"], built["sha256"]) == (JUDGED.job_id, JUDGED.lane_id, JUDGED.sha256)
    assert (built["rubric_sha256"], built["seconds"]) == ("b" * 64, 1.25)
    assert {control["control"]: control["rubric_sha256"] for control in built["controls"]} == {
        "wrong-prompt": "d" * 64,
        "black": "b" * 64,
    }
    assert "pixels" not in built  # other tiers leave it out


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (found(tier="z"), "tier"),
        (found(answers={"child": [1.5]}), "answers.child"),
        (found(mood="fine"), "unknown key 'mood'"),
    ],
)
def test_what_is_no_judgement_is_not_delivered(data: bytes, words: str) -> None:
    judge = judge_of("siglip2-base")
    with pytest.raises(BadRequest, match=words):
        judgements.build(spec_for(judge), JUDGED, judge, ANSWER, data)


def test_presence_is_the_mean_of_the_best_answers() -> None:
    assert presence({"a": [0.2, 0.8, None], "b": [0.4], "c": [None]}, None) == pytest.approx(0.6)
    assert presence({"a": [None]}, None) is None
    assert presence({}, None) is None


def test_what_nobody_wants_to_see_does_not_make_a_clip_the_one_that_shows_most() -> None:
    kinds = {"child": "subject", "doll": "subject", "text-overlay": "negative"}
    questions = [{"id": name, "kind": kind} for name, kind in kinds.items()]
    answers = {"child": [0.2, 0.8], "doll": [None, 0.4], "text-overlay": [1.0]}
    assert presence(answers, questions) == pytest.approx(0.6)
    assert presence({"text-overlay": [1.0]}, questions) is None


def test_the_clip_that_shows_most_shows_it_in_order() -> None:
    """Of a clip out of order no control could say whether its judge sees an order."""
    questions = [
        {"id": "place", "kind": "style", "beat": None},
        *({"id": f"thing-{n}", "kind": "subject", "beat": n} for n in (1, 2, 3)),
    ]

    def shown(*beats: int) -> float | None:
        things = {f"thing-{n}": [0.9 if beat == n else 0.1 for beat in beats] for n in (1, 2, 3)}
        return presence({"place": [0.5] * len(beats), **things}, questions)

    assert shown(1, 2, 3, 3) == pytest.approx((0.5 + 3 * 0.9) / 4)
    assert shown(1, 3, 2, 2) == pytest.approx((0.5 + 2 * 0.9 + 0.1) / 4)
    assert shown(3, 2, 1, 1) == pytest.approx((0.5 + 0.9 + 2 * 0.1) / 4)
    in_order = [shown(1, 2, 3, 3), shown(1, 1, 2, 2), shown(3, 2, 1, 1)]
    assert in_order == sorted(in_order, reverse=True)  # type: ignore[type-var]


def test_cancelled_judgement_does_not_count() -> None:
    artifact = Artifact(
        kind=ArtifactKind.JUDGEMENT, key="k", sha256="e" * 64, size_bytes=1, content_type="application/json"
    )
    done = Outcome(
        failure_class=None,
        phase="uploading",
        artifacts=(artifact,),
        judgement=JudgementFacts(tier="b", method="embedding"),
    )
    ended = outcome.as_cancelled(done)
    assert (ended.failure_class, ended.judgement, ended.artifacts) == (FailureClass.CANCELLED, None, ())
