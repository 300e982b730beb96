"""rubric edit and the drafting language model, through the command line and real HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from screentest import drafting, rubric
from screentest_ui import cli

PROMPT = "A child holds a doll in a cathedral. Then a soldier pulls a lever. Finally the glass dome cracks."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    drafted = drafting.draft(PROMPT)
    path = tmp_path / "rubric.json"
    path.write_text(rubric.to_json(drafted), encoding="utf-8")
    return path


def editor(folder: Path, script: str) -> str:
    """An $EDITOR that runs ``script`` with the parsed file as ``t`` and writes it back."""
    program = folder / "editor.py"
    program.write_text(
        "import json, pathlib, sys\np = pathlib.Path(sys.argv[1])\nt = json.loads(p.read_text())\n"
        f"{script}\np.write_text(json.dumps(t))\n",
        encoding="utf-8",
    )
    return f"{sys.executable} {program}"


def test_an_edit_is_kept_and_says_so(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VISUAL", editor(tmp_path, "t['elements'][0]['weight'] = 0.5"))
    assert cli.run(["rubric", "edit", str(file)]) == 0
    assert rubric.from_json(file.read_text(), "edited").elements[0].weight == 0.5
    assert [path.name for path in tmp_path.glob("*.json")] == ["rubric.json"]


def test_a_wrong_edit_changes_nothing_and_is_not_lost(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_text()
    monkeypatch.setenv("VISUAL", editor(tmp_path, "t['elements'][0]['weight'] = 7"))
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert cli.run(["rubric", "edit", str(file)]) == 2
    assert file.read_text() == before
    (kept,) = (path for path in tmp_path.glob("rubric-*.json"))
    assert json.loads(kept.read_text())["elements"][0]["weight"] == 7
    told = capsys.readouterr().err
    assert "7 is none of 0.5, 1, 2" in told
    assert kept.name in told


def test_an_edit_of_an_approved_rubric_is_a_draft_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rubric.json"
    path.write_text(Path("deploy/rubrics/architects-stillness.json").read_text())
    monkeypatch.setenv("VISUAL", editor(tmp_path, "t['elements'][0]['question'] = 'Is it there, all of it?'"))
    assert cli.run(["rubric", "edit", str(path)]) == 0
    assert "draft: edited since" in capsys.readouterr().out


def test_a_missing_editor_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VISUAL", "/nowhere/editor")
    assert cli.run(["rubric", "edit", str(file)]) == 2
    assert "cannot be started" in capsys.readouterr().err


# ---- the language model


class Endpoint(ThreadingHTTPServer):
    """Answers every chat completion with ``content``, or with ``status``; keeps what it was asked."""

    content: str = ""
    status: int = 200
    asked: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        body = json.dumps({"choices": [{"message": {"content": self.server.content}}]}).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    server = Endpoint(("127.0.0.1", 0), Handler)
    server.asked = []
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SCREENTEST_DRAFT_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("SCREENTEST_DRAFT_MODEL", "a-model")
    yield server
    server.shutdown()
    server.server_close()


def answered(**changes: Any) -> str:
    """A rubric as a model would write it."""
    nouns = ["child", "doll", "cathedral", "soldier", "lever", "glass", "dome", "cracks"]
    elements = [
        {
            "id": noun,
            "kind": "subject",
            "text": f"a {noun}",
            "question": f"Is a {noun} visible?",
            "counter_question": f"Is there no {noun}?",
            "weight": 1,
        }
        for noun in nouns
    ]
    elements[1]["depends_on"] = ["child"]  # type: ignore[assignment]
    return json.dumps({"beats": [], "elements": [{**element, **changes} for element in elements]})


def drafted(capsys: pytest.CaptureFixture[str]) -> tuple[rubric.Rubric, str]:
    assert cli.run(["rubric", "draft", "--llm", "--prompt", PROMPT]) == 0
    told = capsys.readouterr()
    return rubric.from_json(told.out, "stdout"), told.err


def test_a_model_drafts_under_a_schema(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint.content = answered()
    written, told = drafted(capsys)
    assert (written.source, len(written.elements), told) == ("llm", 8, "")
    (asked,) = endpoint.asked
    assert asked["response_format"]["json_schema"]["strict"] is True
    assert PROMPT in asked["messages"][1]["content"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("Sure! Here is your rubric.", "no JSON"),
        (answered(text="a spaceship"), "does not speak of"),
        (answered(text="a child"), "asks twice"),
        (answered(depends_on=["doll", "child"]), "circle"),
        (answered(weight=3), "none of 0.5, 1, 2"),
        (answered(mood="dark"), "unknown key"),
    ],
)
def test_an_answer_that_is_no_rubric_leaves_the_rules(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str], content: str, why: str
) -> None:
    endpoint.content = content
    written, told = drafted(capsys)
    assert written.source == "clauses"
    assert "drafted by rules instead" in told
    assert why in told


def test_an_endpoint_in_trouble_leaves_the_rules(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint.status = 500
    written, told = drafted(capsys)
    assert written.source == "clauses"
    assert "answers 500" in told


def test_a_setting_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SCREENTEST_DRAFT_URL", raising=False)
    assert cli.run(["rubric", "draft", "--llm", "--prompt", PROMPT]) == 2
    assert "SCREENTEST_DRAFT_URL" in capsys.readouterr().err
