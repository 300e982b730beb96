"""The lock file of the weights, and the record in a lane's folder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from screentest.errors import BadRequest
from screentest_ui import weights_lock
from screentest_ui.weights_folder import Folder, State
from screentest_ui.weights_lock import Pin


def pin(repo: str, digit: str, revision: str = "main") -> Pin:
    return Pin(repo=repo, revision=revision, commit=digit * 40)


def test_pins_are_replaced_one_by_one_and_sorted_for_small_diffs(tmp_path: Path) -> None:
    path = tmp_path / weights_lock.NAME
    weights_lock.record(path, (pin("b/model", "1"), pin("a/model", "2", "v1.0")))
    weights_lock.record(path, (pin("b/model", "3"),))
    assert weights_lock.read(path) == (pin("a/model", "2", "v1.0"), pin("b/model", "3"))
    before = path.stat().st_mtime_ns
    weights_lock.record(path, (pin("b/model", "3"),))
    assert path.stat().st_mtime_ns == before  # nothing new: the checkout stays clean


def test_revision_that_is_a_commit_needs_no_pin(tmp_path: Path) -> None:
    path = tmp_path / weights_lock.NAME
    weights_lock.record(path, (pin("a/model", "1", revision="1" * 40),))
    assert not path.exists()
    assert weights_lock.commit_of((), "a/model", "1" * 40) == "1" * 40


def test_pulls_that_end_at_once_all_get_in(tmp_path: Path) -> None:
    path = tmp_path / weights_lock.NAME
    pins = [pin(f"some/model-{number}", "a") for number in range(20)]
    threads = [threading.Thread(target=weights_lock.record, args=(path, (one,))) for one in pins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(weights_lock.read(path)) == set(pins)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<<<<<<< HEAD", "not a TOML file"),
        ('["a/model"]\nmain = "v1"', "is no commit"),
        ('main = "v1"', "wants a table"),
    ],
)
def test_spoilt_lock_file_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / weights_lock.NAME
    path.write_text(text)
    with pytest.raises(BadRequest, match=said) as caught:
        weights_lock.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2}', '{"version": 1, "lane_id": "x", "pins": [{}], "files": []}']
)
def test_record_that_cannot_be_read_says_how_to_mend_it(tmp_path: Path, text: str) -> None:
    folder = Folder(models_dir=tmp_path, lane_id="some-lane")
    folder.path.mkdir()
    folder.record_file.write_text(text)
    with pytest.raises(BadRequest, match="delete it and run `screentest models pull some-lane`"):
        folder.state()


def test_folder_is_absent_partial_or_unrecorded_without_a_record(tmp_path: Path) -> None:
    folder = Folder(models_dir=tmp_path, lane_id="some-lane")
    assert folder.state() is State.ABSENT
    folder.staging.mkdir(parents=True)
    assert folder.state() is State.PARTIAL
    folder.path.mkdir()
    (folder.path / "model_index.json").touch()
    assert folder.state() is State.UNRECORDED
