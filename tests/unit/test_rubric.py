"""A rubric is read strictly, keeps its hash, and knows when it was edited after its approval."""

from __future__ import annotations

import copy
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from screentest import rubric
from screentest.drafting import draft
from screentest.errors import BadRequest
from screentest_ui import cli

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy/rubrics/architects-stillness.json"
SWEEP = ROOT / "deploy/sweeps/architects-stillness.toml"
STILLNESS = tomllib.loads(SWEEP.read_text(encoding="utf-8"))["prompt"]

PROMPTS = (
    STILLNESS,
    "A cat",
    "A red fox runs through snow, then jumps over a frozen river. Finally it sleeps. Static camera, no text, no logo.",
    "cinematic, anamorphic, moody",
    "The chef chops onions as the kitchen burns; cut to a fire engine without a driver.",
    "Aerial shot of a coastline at dawn, slow pan left, waves break on black sand, 4k, photorealistic",
    "猫が走る。犬が寝る。",
    "the of and",
    "A man in a red coat holds an umbrella while a dog chases a ball. The camera pulls back to reveal the city.",
    "Timelapse: a seed sprouts, grows, blooms and withers; finally snow covers the pot.",
    "word " * 700,
    "Ünïcödé Straße, l'été; ... !!! ??? a. b. c.",
)

SCRAMBLED = "a the fox runs , . ; then no text camera pans in moody while as cut to holds"


def shipped() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return table


def read(table: dict[str, Any]) -> rubric.Rubric:
    return rubric.from_json(json.dumps(table), "r.json")


# ---- the shipped rubric


def test_shipped_rubric_is_approved_and_for_the_shipped_prompt() -> None:
    known = rubric.from_json(SHIPPED.read_text(encoding="utf-8"), "r.json")
    assert known.approved_by
    assert known.is_for(STILLNESS)
    assert rubric.strangers(known, STILLNESS) == ()
    assert rubric.to_json(known) == SHIPPED.read_text(encoding="utf-8")


def test_shipped_rubric_asks_for_the_story_of_the_case_study() -> None:
    ids = {element["id"] for element in shipped()["elements"]}
    assert {"cathedral", "child", "doll", "cyborg-brain", "soldier", "eye-reflection"} <= ids


def test_prompt_may_be_wrapped_otherwise() -> None:
    assert rubric.prompt_sha256("a  b\n c\n") == rubric.prompt_sha256("a b c")
    assert rubric.prompt_sha256("a b c") != rubric.prompt_sha256("a b C")


# ---- strict reading


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update(schema="rubric/2"), "schema: 'rubric/2' is not known"),
        (lambda t: t.update(beets=[]), "unknown key 'beets'; did you mean 'beats'"),
        (lambda t: t.pop("prompt_sha256"), "'prompt_sha256' is missing"),
        (lambda t: t.update(prompt_sha256="abc"), "prompt_sha256: wants 64 hex"),
        (lambda t: t.update(prompt_sha256=rubric.prompt_sha256(" \n")), "prompt_sha256: is that of an empty prompt"),
        (lambda t: t.update(elements=[]), "elements: is empty"),
        (lambda t: t["elements"][0].update(kind="thing"), r"elements\[0\].kind: 'thing' is none of subject"),
        (lambda t: t["elements"][0].update(weight=3), r"elements\[0\] \(cathedral\).weight: 3 is none of 0.5, 1, 2"),
        (lambda t: t["elements"][0].update(weight=True), "wants a whole number or a number, got True"),
        (lambda t: t["elements"][0].update(id="Big Hall"), "for example 'big-hall'"),
        (lambda t: t["elements"][0].update(text=" "), "text: is empty"),
        (lambda t: t["elements"][0].update(text="x" * 241), "text: has 241 characters"),
        (lambda t: t["elements"][0].pop("counter_question"), r"'elements\[0\].counter_question' is missing"),
        (lambda t: t["elements"][0].update(counter_question=t["elements"][0]["question"]), "is the question itself"),
        (lambda t: t["elements"][0].update(beat=9), "beat: is 9; the rubric has beats 1 to 6"),
        (lambda t: t["elements"][0].update(beat=0), "beat: is 0"),
        (lambda t: t["elements"][0].update(depends_on=["dog"]), "depends_on: 'dog' is no element"),
        (lambda t: t["elements"][0].update(depends_on=["glide-forward"]), "'glide-forward' is a camera"),
        (lambda t: t["elements"][0].update(depends_on=["doll", "doll"]), "names an element twice"),
        (lambda t: t["elements"][0].update(swaps=[""]), r"swaps\[0\]: is empty"),
        (lambda t: t["elements"][0].update(swaps=[t["elements"][0]["text"]]), r"swaps\[0\]: is the element itself"),
        (lambda t: t["elements"][0].update(flow="pan"), "flow: is for camera elements, not for a subject"),
        (lambda t: t["elements"].append(t["elements"][0]), "elements: two have the id 'cathedral'"),
        (lambda t: t["elements"][20].update(beat=1), "a camera element is judged on the whole clip"),
        (lambda t: t["elements"][15].pop("beat"), "an element of kind beat says which one"),
        (lambda t: t["beats"][1].update(n=3), r"beats\[1\].n: is 3; beats count"),
        (lambda t: t["beats"].append({"n": 7, "label": "x"}), r"beats\[6\]: no element has the beat 7"),
        (lambda t: t["beats"].extend({"n": n, "label": "x"} for n in (7, 8, 9)), "beats: has 9, at most 8"),
        (lambda t: t.update(approved={"by": "me"}), "'approved.sha256' is missing"),
    ],
)
def test_broken_rubric_is_refused_with_the_field(change: Any, told: str) -> None:
    table = shipped()
    change(table)
    with pytest.raises(BadRequest, match=told):
        read(table)


def test_circle_is_named() -> None:
    table = shipped()
    ids = {element["id"]: element for element in table["elements"]}
    ids["child"]["depends_on"], ids["doll"]["depends_on"] = ["doll"], ["child"]
    with pytest.raises(BadRequest, match=r"depends_on: goes in a circle: .*child.*doll"):
        read(table)


@pytest.mark.parametrize("text", ["{", '{"schema": "rubric/1", "schema": "rubric/1"}', '{"weight": NaN}', "[]", ""])
def test_what_is_no_json_table_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=r"r\.json"):
        rubric.from_json(text, "r.json")


def test_approved_rubric_has_8_to_25_elements_and_a_draft_may_have_fewer() -> None:
    few = draft("A cat")
    assert len(few.elements) < rubric.MIN_ELEMENTS
    with pytest.raises(BadRequest, match=r"elements: has \d, an approved rubric has 8 to 25"):
        rubric.approve(few, "Ada", "r.json")


# ---- hash and approval


def test_hash_is_of_what_is_asked_and_of_nothing_else() -> None:
    known = read(shipped())
    assert replace(known, approved=None, source="llm").sha256 == known.sha256
    heavier = replace(known.elements[0], weight=2.0)
    assert replace(known, elements=(heavier, *known.elements[1:])).sha256 == known.sha256
    other = replace(known.elements[0], question="Is it there?")
    assert replace(known, elements=(other, *known.elements[1:])).sha256 != known.sha256


def test_hash_of_the_shipped_rubric_is_what_scores_will_carry() -> None:
    approved = shipped()["approved"]
    assert read(shipped()).sha256 == approved["sha256"]


def test_edit_after_approval_makes_a_draft() -> None:
    table = shipped()
    assert not read(table).is_draft
    edited = copy.deepcopy(table)
    edited["elements"][3]["question"] = "Is a boy visible?"
    assert read(edited).is_draft
    assert read(edited).approved_by is None


def test_parents_come_first() -> None:
    known = read(shipped())
    order = [element.id for element in known.parents_first()]
    assert len(order) == len(known.elements)
    assert all(order.index(p) < order.index(e.id) for e in known.elements for p in e.depends_on)


# ---- drafts


@pytest.mark.parametrize("prompt", PROMPTS)
def test_draft_is_valid_deterministic_and_made_of_the_prompt(prompt: str) -> None:
    drafted = draft(prompt)
    assert rubric.from_json(rubric.to_json(drafted), "r.json") == drafted == draft(prompt)
    assert drafted.is_draft
    assert drafted.is_for(prompt)
    assert len(drafted.elements) <= rubric.MAX_ELEMENTS
    if rubric.content_words(prompt):
        assert rubric.strangers(drafted, prompt) == ()


@given(st.text(max_size=400))
def test_draft_of_any_text_is_valid_or_refused(prompt: str) -> None:
    if not rubric.words(prompt):
        with pytest.raises(BadRequest, match="no words"):
            draft(prompt)
        return
    drafted = draft(prompt)
    assert rubric.from_json(rubric.to_json(drafted), "r.json") == drafted


@given(st.lists(st.sampled_from(SCRAMBLED.split())))
def test_draft_of_scrambled_grammar_shares_a_word_with_its_prompt(said: list[str]) -> None:
    prompt = " ".join(said)
    if rubric.content_words(prompt):
        assert rubric.strangers(draft(prompt), prompt) == ()


def test_clauses_become_beats_in_order() -> None:
    drafted = draft(PROMPTS[2])
    assert [beat.label for beat in drafted.beats] == [
        "A red fox runs through snow",
        "jumps over a frozen river",
        "it sleeps",
    ]
    by_kind = {element.kind: element for element in drafted.elements}
    assert by_kind["camera"].flow == "still"
    assert {e.text for e in drafted.elements if e.kind == "negative"} == {"text", "logo"}


def test_cutaway_is_an_expected_cut_and_as_splits_before_an_actor_only() -> None:
    assert [(b.label, b.cut_expected) for b in draft(PROMPTS[4]).beats] == [
        ("The chef chops onions", False),
        ("the kitchen burns", False),
        ("a fire engine without a driver", True),
    ]
    assert len(draft("A snail as slow as honey").beats) == 1


def test_relation_depends_on_both_of_its_things() -> None:
    drafted = draft(PROMPTS[8])
    relation = next(element for element in drafted.elements if element.kind == "relation")
    kinds = {element.id: element.kind for element in drafted.elements}
    assert [kinds[parent] for parent in relation.depends_on] == ["subject", "subject"]


def test_draft_of_the_shipped_prompt_finds_its_cast_and_camera() -> None:
    drafted = draft(STILLNESS)
    said = " ".join(element.text for element in drafted.elements)
    assert all(word in said for word in ("cathedral", "child", "doll", "cyborg brain", "dome", "eye"))
    assert "zoom_in" in {element.flow for element in drafted.elements}
    assert any(beat.cut_expected for beat in drafted.beats)


# ---- the command


def run(*arguments: object) -> int:
    return cli.run(["rubric", *map(str, arguments)])


def test_drafted_file_is_checked_edited_and_approved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.json"
    assert run("draft", SWEEP, "--out", file) == 0
    assert run("check", file, "--sweep", SWEEP) == 0
    assert "draft" in capsys.readouterr().out
    assert run("draft", SWEEP, "--out", file) == 1
    assert run("approve", file, "--by", "Ada") == 0
    assert "approved by Ada" in capsys.readouterr().out
    file.write_text(file.read_text(encoding="utf-8").replace('"weight": 2', '"weight": 1', 1), encoding="utf-8")
    assert run("check", file) == 0
    assert "edited since Ada approved it" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    "arguments",
    [("draft",), ("draft", SWEEP, "--prompt", "a cat"), ("check", "none.json"), ("draft", "--prompt", "!!!")],
)
def test_unusable_input_of_the_command_is_a_usage_error(arguments: tuple[object, ...]) -> None:
    assert run(*arguments) == 2


def test_rubric_of_another_prompt_is_told_from_its_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "s.toml"
    sweep.write_text('prompt = "A cat"\nlanes = ["a"]\n', encoding="utf-8")
    assert run("check", SHIPPED, "--sweep", sweep) == 2
    assert "for another prompt" in capsys.readouterr().err
    assert run("check", SHIPPED, "--sweep", SWEEP, "--json") == 0
    assert json.loads(capsys.readouterr().out)["not_in_prompt"] == []
