"""Subjects of the bus: ids that cannot break them, and no two things under one subject."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screentest import objects, subjects
from screentest.errors import BadRequest
from screentest.records import ArtifactKind

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("text", ["a", "wan2-1-t2v-1-3b", "0", "-", "x" * 63])
def test_a_legal_id_is_taken_as_it_is(text: str) -> None:
    assert subjects.check_id(text, "lane id") == text


@pytest.mark.parametrize("text", ["", "wan2.1", "Wan", "a b", "a*", "a>", "ä", "x" * 64, "a\n", "a/b", "a_b"])
def test_an_id_that_would_break_a_subject_is_refused_with_a_legal_one(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        subjects.check_id(text, "lane id", "spec.lane_ids[0]")
    assert repr(text) in str(caught.value)
    assert f"for example {subjects.legal_form(text)!r}" in str(caught.value)
    assert [violation.field for violation in caught.value.violations] == ["spec.lane_ids[0]"]


def test_a_refusal_without_field_has_no_violation() -> None:
    with pytest.raises(BadRequest) as caught:
        subjects.check_id("a.b", "sweep id")
    assert caught.value.violations == ()


def test_the_case_studys_lane_key_becomes_the_lanes_id() -> None:
    assert subjects.legal_form("wan2.1_t2v_1.3b") == "wan2-1-t2v-1-3b"


@PROPERTY
@given(st.text(max_size=200) | st.text("aB.- ", min_size=60, max_size=70))
def test_the_legal_form_of_any_text_is_legal_and_stays_what_it_is(text: str) -> None:
    legal = subjects.legal_form(text)
    assert subjects.check_id(legal, "id") == legal
    assert subjects.legal_form(legal) == legal


def test_a_shortened_form_does_not_end_with_a_dash() -> None:
    assert subjects.legal_form("a" * 62 + " tail") == "a" * 62


def test_job_events_are_found_again_by_their_subject() -> None:
    assert subjects.parse_job_events(subjects.job_events("sweep", "lane", "job")) == ("sweep", "lane", "job")


@pytest.mark.parametrize("subject", ["sweeps.s", "control.h.d", "events.s.l", "events.s.l.j.x", "jobs.s.l.j"])
def test_other_subjects_are_no_job_events(subject: str) -> None:
    assert subjects.parse_job_events(subject) is None


def test_no_two_kinds_of_message_share_a_subject() -> None:
    single = [
        subjects.job_events("a", "b", "c"),
        subjects.sweep_events("a"),
        subjects.control("a", "b"),
        subjects.request_claim("a"),
        subjects.dispatch("a", "b", "c", "d", 1),
        subjects.command("a", "b", "c"),
        subjects.alive("a", "b", "c"),
        subjects.progress("a", "b", "c"),
        subjects.depot_url("a"),
        subjects.proof("a", "b"),
        subjects.device_facts("a", "b"),
        subjects.register_runner("a", "b"),
        subjects.vitals("a"),
    ]
    assert len({subject.split(".")[0] for subject in single} | {"svc"}) == len(single)


def test_every_attempt_has_a_subject_of_its_own() -> None:
    """A late ack or refusal must not touch a newer attempt's message."""
    assert subjects.dispatch("h", "d", "l", "j", 1) != subjects.dispatch("h", "d", "l", "j", 2)


@pytest.mark.parametrize(
    ("pattern", "own", "neighbour"),
    [
        (subjects.sweep_job_events("s"), subjects.job_events("s", "l", "j"), subjects.job_events("s2", "l", "j")),
        (
            subjects.lane_dispatches("h", "d", "l"),
            subjects.dispatch("h", "d", "l", "j", 3),
            subjects.dispatch("h", "d", "l2", "j", 3),
        ),
        (subjects.sweep_progress("s"), subjects.progress("s", "l", "j"), subjects.progress("s2", "l", "j")),
    ],
)
def test_a_filter_matches_its_own_messages_only(pattern: str, own: str, neighbour: str) -> None:
    stem = pattern.removesuffix(">")
    assert stem.endswith(".")
    assert own.startswith(stem)
    assert not neighbour.startswith(stem)


def test_each_stored_subject_belongs_to_exactly_one_stream() -> None:
    streams = {
        subjects.EVENTS_STREAM: subjects.EVENTS_SUBJECTS,
        subjects.JOBS_STREAM: subjects.JOBS_SUBJECTS,
        subjects.VITALS_STREAM: subjects.VITALS_SUBJECTS,
    }
    heads = [pattern.split(".")[0] for patterns in streams.values() for pattern in patterns]
    assert len(set(heads)) == len(heads)
    for made in (
        subjects.job_events("a", "b", "c"),
        subjects.sweep_events("a"),
        subjects.control("a", "b"),
        subjects.request_claim("a"),
    ):
        assert f"{made.split('.')[0]}.>" in subjects.EVENTS_SUBJECTS


def test_a_durable_name_has_no_dot() -> None:
    assert subjects.lane_consumer("local", "gpu-0", "wan") == "local_gpu-0_wan"


# ---- keys of the depot


@pytest.mark.parametrize("kind", [ArtifactKind.CLIP, ArtifactKind.LOG, ArtifactKind.MANIFEST])
def test_the_key_of_an_artifact_carries_its_content(kind: ArtifactKind) -> None:
    """The second put of the same bytes meets the first; other bytes never do."""
    one, other = "a" * 64, "b" * 64
    key = objects.attempt_object(kind, "sweep", "lane", "job", 1, one)
    assert key.startswith("sweep/")
    assert one[:16] in key
    assert key != objects.attempt_object(kind, "sweep", "lane", "job", 1, other)
    assert key != objects.attempt_object(kind, "sweep", "lane", "job", 2, one)


def test_artifacts_of_one_attempt_have_different_keys() -> None:
    kinds = [ArtifactKind.CLIP, ArtifactKind.LOG, ArtifactKind.MANIFEST]
    assert len({objects.attempt_object(kind, "s", "l", "j", 1, "a" * 64) for kind in kinds}) == 3


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("report.json", "application/json"),
        ("sheets/job.jpg", "image/jpeg"),
        ("notes", "application/octet-stream"),
    ],
)
def test_a_report_file_says_what_it_is(name: str, content_type: str) -> None:
    assert objects.report_content_type(name) == content_type
    assert objects.report_file("sweep", name) == f"sweep/report/{name}"
