"""What the panel's pages decide: rubrics edited in a table, sums against a budget, pairs, findings, the door."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace

import pytest

from screentest import rubric
from screentest.records import (
    Estimate,
    FindingEdited,
    JobState,
    Judged,
    JudgePurpose,
    Keyframe,
    LaneVerdict,
    PairOutcome,
    PairVoted,
    Rated,
    RubricRef,
    Task,
    Verdict,
    Weights,
)
from screentest_ui import panel_access, panel_budget, panel_keyframe, panel_people, panel_report, panel_rubric
from screentest_ui.panel_access import Door
from screentest_ui.panel_doctor import Verdict as Examination
from screentest_ui.panel_doctor import _listen
from screentest_ui.panel_queue import left_words, waiting
from screentest_ui.panel_vitals import spans, within
from tests.integration.panel_scheduler import job, lane, stamp, vitals
from tests.made_sweeps import plan

PROMPT = (
    "A porcelain doll sits in a gothic cathedral, then a soldier walks in, then the camera pushes in. "
    "Cinematic lighting, no text."
)


# ---- the rubric in its tables


def drafted() -> rubric.Rubric:
    found = panel_rubric.drafted(PROMPT)
    assert found is not None
    return found


def test_untouched_tables_are_the_same_rubric_with_its_approval() -> None:
    approved = rubric.approve(drafted(), "Ann", "rubric")
    rows, beats = panel_rubric.element_rows(approved), panel_rubric.beat_rows(approved)
    assert panel_rubric.from_rows(approved, rows, beats) is approved
    assert "approved by Ann" in panel_rubric.summary(approved)


def test_an_edit_makes_a_draft_of_it_again() -> None:
    approved = rubric.approve(drafted(), "Ann", "rubric")
    rows = panel_rubric.element_rows(approved)
    rows[0]["weight"] = "2"
    edited = panel_rubric.from_rows(approved, rows, panel_rubric.beat_rows(approved))
    assert edited.is_draft
    assert edited.source == "author"
    assert "draft: edited since Ann approved it" in panel_rubric.summary(edited)


def test_every_wrong_element_is_named_with_what_is_wrong() -> None:
    before = drafted()
    rows = panel_rubric.element_rows(before)
    rows[0]["text"] = ""
    rows[1]["counter_question"] = rows[1]["question"]
    new = {"id": "x y", "kind": "subject", "text": "a cat", "question": "a?", "counter_question": "b?", "beat": None}
    edited = panel_rubric.from_rows(before, [*rows, {**new, "beat": float("nan")}], panel_rubric.beat_rows(before))
    places = [place for place, _ in panel_rubric.problems(edited)]
    assert places == [f"{rows[0]['id']}, text", f"{rows[1]['id']}, counter question", "x y, id"]


def test_what_is_wrong_with_the_whole_is_said_once() -> None:
    before = drafted()
    (problem,) = panel_rubric.problems(panel_rubric.from_rows(before, [], []))
    assert problem == ("elements", "is empty; a rubric asks for something")
    few = replace(before, elements=before.elements[:3], beats=())
    few = replace(
        few, elements=tuple(replace(element, beat=None, kind="subject", flow=None) for element in few.elements)
    )
    assert panel_rubric.problems(few) == ()
    assert "8 to 25" in panel_rubric.approval_problem(few)


# ---- sums


def verdict(title: str, **estimate: float | None) -> LaneVerdict:
    known = Estimate(rung=0, rung_name="resident", **estimate)  # type: ignore[arg-type]
    planned = replace(plan(title.lower(), title), estimates=(known,))
    return LaneVerdict(lane_id=title.lower(), lane_title=title, verdict=Verdict.OK, detail="", plan=planned)


def test_a_lane_loads_once_and_makes_its_clips_one_after_the_other() -> None:
    found = panel_budget.bill([verdict("Wan", load_s=40, clip_s=100, energy_wh=5)], cells=3)
    assert (found.seconds, found.energy_wh) == (340, 15)
    assert (found.time_words, found.energy_words) == ("about 5 min 40 s", "about 15.0 Wh")
    assert panel_budget.over_budget(found, hours=1, watt_hours=20) == ()
    over = panel_budget.over_budget(found, hours=0.05, watt_hours=10)
    assert over == ("about 5 min 40 s of GPU time, the budget is 3 min 0 s", "about 15.0 Wh, the budget is 10 Wh")


def test_what_nobody_knows_is_named_and_never_taken_for_nothing() -> None:
    found = panel_budget.bill([verdict("Wan", load_s=None, clip_s=100), verdict("Mochi")], cells=1)
    assert found.time_words == "at least 1 min 40 s (unknown for Mochi)"
    assert found.energy_words == "unknown"


def test_a_language_model_is_asked_twice_in_every_window_and_pixels_nothing() -> None:
    asked = drafted()
    whole = sum(element.kind in rubric.WHOLE_CLIP_KINDS for element in asked.elements)
    in_windows = len(asked.elements) - whole
    assert panel_budget.questions(asked, "c") == 2 * (whole + in_windows * asked.window_count)
    assert panel_budget.questions(asked, "a") == 0
    judges = [lane("pix", task=Task.JUDGE, tier="a"), lane("qwen", task=Task.JUDGE, tier="c")]
    cheap, dear = panel_budget.judge_bills(judges, [asked, None], 6, {"pix": 0.5})
    assert (cheap.clips, cheap.questions, cheap.seconds) == (12, 0, 6)
    assert (dear.questions, dear.seconds) == (6 * panel_budget.questions(asked, "c"), None)


def test_lanes_that_see_the_same_of_the_keyframe_share_one_preview() -> None:
    keyframe = Keyframe(key="k", sha256="a" * 64, width_px=1600, height_px=900, size_bytes=1)
    i2v = replace(plan("one", "One"), task=Task.I2V, width_px=800, height_px=800)
    lanes = [
        LaneVerdict(lane_id=name, lane_title=name, verdict=Verdict.OK, detail="", plan=replace(i2v, lane_id=name))
        for name in ("one", "two")
    ]
    lanes.append(replace(lanes[0], plan=replace(i2v, task=Task.T2V)))
    (crop,) = panel_keyframe.crops(keyframe, lanes)
    assert crop.words == "one and two: 800x800, 56% of the picture"


# ---- people


def clips(*lanes: str, seeds: int = 1, weights: Weights = Weights.HUB) -> tuple[panel_people.Contender, ...]:
    made = [
        job(f"{name}-{seed}", JobState.COMPLETED, lane_id=name, lane_title=name, weights=weights, ordinal=number)
        for number, name in enumerate(lanes)
        for seed in range(seeds)
    ]
    spread = [replace(item, spec=replace(item.spec, seed=int(item.spec.job_id[-1]))) for item in made]
    return panel_people.contenders(spread)


def test_clips_of_random_weights_are_never_shown_for_an_opinion() -> None:
    assert len(clips("a", "b")) == 2
    assert clips("a", "b", weights=Weights.MINIATURE) == ()


def test_the_order_of_rating_is_a_lot_that_stays() -> None:
    all_clips = clips(*"abcdef")
    order = panel_people.queue(all_clips, (), "one")
    assert order == panel_people.queue(tuple(reversed(all_clips)), (), "one")
    assert order != panel_people.queue(all_clips, (), "two")
    rated = Rated(job_id=order[0].job_id, rater="", score10=3)
    assert panel_people.queue(all_clips, (rated,), "one") == order[1:]
    assert panel_people.queue(all_clips, (rated,), "one", rater="somebody else") == order
    last = order[-1]
    assert panel_people.queue(all_clips, (), "one", conflicts={last.job_id}) == (last, *order[:-1])


def test_pairs_of_lanes_take_turns_and_sides_are_drawn() -> None:
    all_clips = clips(*"abcd", seeds=3)
    votes: tuple[PairVoted, ...] = ()
    met: Counter[frozenset[str]] = Counter()
    lefts: Counter[str] = Counter()
    for _ in range(60):
        pair = panel_people.next_pair(all_clips, votes, "salt")
        assert pair is not None
        assert pair.left.lane_id != pair.right.lane_id
        assert pair.left.seed == pair.right.seed
        met[frozenset((pair.left.lane_id, pair.right.lane_id))] += 1
        lefts[(min(pair.left.lane_id, pair.right.lane_id) == pair.left.lane_id and "first") or "second"] += 1
        voted = PairVoted(
            left_job_id=pair.left.job_id, right_job_id=pair.right.job_id, outcome=PairOutcome.LEFT, rater=""
        )
        votes = (*votes, voted)
    assert set(met.values()) == {10}
    assert min(lefts.values()) >= 18


def test_a_rater_meets_every_pair_once_before_any_comes_again() -> None:
    all_clips = clips(*"abcd")
    votes: tuple[PairVoted, ...] = ()
    met: list[frozenset[str]] = []
    for number in range(7):
        pair = panel_people.next_pair(all_clips, votes, "salt", rater="ada")
        assert pair is not None
        assert pair.is_answered == (number == 6)
        sides = {"left_job_id": pair.left.job_id, "right_job_id": pair.right.job_id, "outcome": PairOutcome.TIE}
        met.append(frozenset((pair.left.job_id, pair.right.job_id)))
        # bob votes thrice as often, so that ada's pairs have the most votes of all
        votes = (*votes, *(PairVoted(**sides, rater=rater) for rater in ("ada", "bob", "eve")))
    assert len(set(met[:6])) == 6
    assert met[6] in met[:6]


def test_one_lane_makes_no_pair() -> None:
    assert panel_people.next_pair(clips("a", seeds=3), (), "salt") is None


def test_an_edited_finding_keeps_the_original_and_an_empty_one_brings_it_back() -> None:
    jobs = [job("good", JobState.COMPLETED)]
    edits = (FindingEdited(row="good", text="Mine", by="Ann"), FindingEdited(row="note:cuts", text="Cut less", by=""))
    composed = {"good": "Composed", "note:cuts": "Many cuts"}
    row, note = panel_people.findings(jobs, composed, edits)
    assert (row.original, row.edited, row.by) == ("Composed", "Mine", "Ann")
    assert (note.row, note.model, note.original, note.edited) == ("note:cuts", "note: cuts", "Many cuts", "Cut less")
    (undone, _) = panel_people.findings(jobs, composed, (replace(edits[0], text=""),))
    assert undone.edited is None


def test_a_report_tells_its_revision_and_what_it_was_composed_with() -> None:
    content = {
        "revision": 4,
        "final": True,
        "published_at": "2026-05-08T23:29:59+00:00",
        "rows": [{"job_id": "good", "finding": "Mine", "finding_original": "Composed"}],
        "operator_notes": [{"id": "note:cuts", "text": "Cut less", "original": "Many cuts"}],
    }
    revision = panel_report.revision_of(json.dumps(content).encode())
    assert revision is not None
    assert revision.words == "Revision 4, final, published 2026-05-08 23:29:59 UTC"
    assert revision.findings == {"good": "Composed", "note:cuts": "Many cuts"}
    assert panel_report.revision_of(b'{"revision": 4}') is None


# ---- time


def test_spans_are_the_attempts_as_they_ran() -> None:
    now = stamp(20).at
    jobs = [job("good", JobState.COMPLETED, ordinal=1), job("now", JobState.RUNNING), job("next", JobState.QUEUED)]
    found = spans(jobs, now)
    assert [(span.status, span.ended_at) for span in found] == [("completed", stamp(10).at), ("running", now)]
    batches = [vitals(second, gpu=True) for second in range(30)]
    assert len(within(batches, found[0].started_at, stamp(10).at)) == 9


def test_a_long_title_never_takes_the_seed_of_a_cell() -> None:
    ran = job("a", JobState.COMPLETED, lane_title="SkyReels " * 20)
    (alone,) = spans([ran], stamp(20).at)
    assert alone.job.endswith(" …, seed 42")
    other = replace(ran, spec=replace(ran.spec, job_id="b", prompt_index=1))
    assert {span.job for span in spans([ran, other], stamp(20).at)} == {
        f"{alone.job}, prompt 1",
        f"{alone.job}, prompt 2",
    }


def test_a_sweeps_end_is_known_only_when_every_job_is() -> None:
    one = replace(job("one", JobState.QUEUED), expected_wait_s=60.0, expected_run_s=300.0)
    assert left_words([one, job("done", JobState.COMPLETED)]) == "about 6 min 0 s left"
    assert left_words([one, job("two", JobState.QUEUED)]) == ""


def test_a_judge_at_work_says_what_it_looks_at() -> None:
    ref = RubricRef(prompt_index=0, key="r", sha256="a" * 64, size_bytes=1, rubric_sha256="a" * 64)
    judged = Judged(
        purpose=JudgePurpose.CLIP, job_id="good", lane_id="wan", key="k", sha256="a" * 64, size_bytes=1, rubric=ref
    )
    made = job("judge", JobState.QUEUED, lane_title="Pixels")
    (waits,) = waiting([replace(made, spec=replace(made.spec, task=Task.JUDGE, judged=judged))])
    assert waits.lane_title == "Pixels, clip of wan"


# ---- the door

OIDC = dict.fromkeys(("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url"), "x")
DOOR = Door(address="0.0.0.0", oidc=OIDC, people=("@studio.example",), can_log_in=True)


@pytest.mark.parametrize(
    ("door", "says"),
    [
        (replace(DOOR, address="127.0.0.1", oidc={}), ""),
        (DOOR, ""),
        (replace(DOOR, oidc={}), "Bind it to 127.0.0.1"),
        (replace(DOOR, address="192.168.1.7", oidc={}), "192.168.1.7"),
        (replace(DOOR, oidc={**OIDC, "client_secret": ""}), "with client_secret in"),
        (replace(DOOR, people=()), "everybody whom the provider knows"),
        (replace(DOOR, address="127.0.0.1", can_log_in=False), "pip install Authlib"),
    ],
)
def test_a_door_beyond_loopback_opens_only_with_a_complete_login(door: Door, says: str) -> None:
    found = panel_access.problem(door)
    assert says in found
    assert bool(found) == bool(says)


def test_only_named_and_verified_people_are_let_in() -> None:
    people = ("Ann@other.example", "@studio.example")
    assert panel_access.is_allowed("ann@other.example", True, people)
    assert panel_access.is_allowed("Bob@Studio.example", None, people)
    assert not panel_access.is_allowed("bob@studio.example", False, people)
    for stranger in ("bob@other.example", "bob@evil-studio.example", "@studio.example", "", None):
        assert not panel_access.is_allowed(stranger, True, people)


# ---- the doctor


def test_the_doctors_lines_become_a_verdict() -> None:
    check = {"lane": "wan", "check": "signature", "status": "ok", "detail": "", "fix": "", "seconds": 0.1}
    bad = {**check, "check": "ladder", "status": "failed", "detail": "rung lean: out of memory", "fix": "Raise it"}
    said = f"print({json.dumps(json.dumps(check))}); print({json.dumps(json.dumps(bad))}); raise SystemExit(1)"
    found = Examination()
    _listen([sys.executable, "-c", said], found)
    assert (found.checks, found.words) == (2, "ladder: rung lean: out of memory. Raise it")
    ended = Examination()
    _listen([sys.executable, "-c", "raise SystemExit('no such lane')"], ended)
    assert ended.words == "not examined: no such lane"
