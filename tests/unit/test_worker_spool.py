"""The spool on disk: what it gives back, and what it does about a folder that it cannot understand."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from screentest.records import Dispatch, Outcome
from screentest_worker.spool import Ended, Spool
from tests.unit.test_worker_decisions import spec

DISPATCH = Dispatch(spec=spec(), attempt=1, rung=0, admitted_sequence=2)
ENDED = Ended(dispatch=DISPATCH, outcome=Outcome(failure_class=None), expected_sequence=3)
# Field 1 of an outcome is its failure class; a class of a later version has a number that this one does not know.
UNKNOWN_ENUM = base64.b64encode(b"\x08\xff\x0f").decode()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_finished_result_comes_back_as_it_was_stored(spool: Spool) -> None:
    spool.note(DISPATCH, "denoising")
    spool.store(ENDED)
    assert spool.left() == ((ENDED,), ())
    assert spool.ended(DISPATCH) == ENDED


def test_attempt_under_way_comes_back_with_its_phase(spool: Spool) -> None:
    spool.note(DISPATCH, "denoising")
    ended, under_way = spool.left()
    assert ended == ()
    assert [(lost.dispatch, lost.phase) for lost in under_way] == [(DISPATCH, "denoising")]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"dispatch": "no base64!", "outcome": "", "expected_sequence": 1}),
        json.dumps({"dispatch": 7, "outcome": "", "expected_sequence": 1}),
        json.dumps({"dispatch": "////", "outcome": "", "expected_sequence": 1}),
    ],
)
@pytest.mark.parametrize("name", ["outcome.json", "attempt.json"])
def test_folder_that_nobody_understands_is_moved_aside(spool: Spool, tmp_path: Path, name: str, text: str) -> None:
    (spool.path(DISPATCH) / name).write_text(text)
    for _ in range(2):  # and is left alone from then on
        assert spool.left() == ((), ())
        assert (tmp_path / "j-1.unreadable" / name).read_text() == text
        assert not (tmp_path / "j-1").exists()


def test_outcome_of_a_later_version_is_moved_aside_at_its_delivery(spool: Spool, tmp_path: Path) -> None:
    spool.store(ENDED)
    edit(tmp_path / "j-1" / "outcome.json", outcome=UNKNOWN_ENUM)
    assert spool.ended(DISPATCH) is None
    assert (tmp_path / "j-1.unreadable" / "outcome.json").exists()
    assert spool.interrupted_phase(DISPATCH) is None


def test_unreadable_result_hides_no_other(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "a-1").mkdir()
    (tmp_path / "a-1" / "outcome.json").write_text("{}")
    spool.store(ENDED)
    assert spool.left() == ((ENDED,), ())
