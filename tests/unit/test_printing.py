"""How a table reads on a terminal of any width, and in a pipe."""

from __future__ import annotations

import io
import sys

import pytest

from screentest_ui import printing

COLUMNS = ("Lane", "Repository", "Why")
LANE = "hunyuanvideo-1-5-i2v"
REPOSITORY = "hunyuanvideo-community/HunyuanVideo-1.5-480p_i2v"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(width: int, why: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name, value in {"TERM": "dumb", "LINES": "50", "COLUMNS": str(width)}.items():
        monkeypatch.setenv(name, value)
    printing.print_table(COLUMNS, [(LANE, REPOSITORY, why)])
    return [line.rstrip() for line in terminal.getvalue().splitlines()]


def test_a_row_that_fits_is_a_line_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(120, "no worker", monkeypatch)
    assert lines[0].split() == list(COLUMNS)
    assert lines[1].split() == [LANE, REPOSITORY, "no", "worker"]


def test_a_narrow_terminal_gets_a_paragraph_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(70, "no worker", monkeypatch)
    assert lines[0] == LANE
    assert " ".join(" ".join(lines[1:]).split()) == f"Repository: {REPOSITORY} | Why: no worker"


def test_a_long_reason_gets_a_paragraph_not_a_tall_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(100, "word " * 60, monkeypatch)
    assert lines[0] == LANE
    assert len(lines) < 8


def test_an_id_is_never_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (40, 60, 80, 90, 100):
        assert any(LANE in line for line in shown(width, "word " * 8, monkeypatch))


def test_an_empty_cell_is_left_out_of_a_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Why" not in "\n".join(shown(70, "", monkeypatch)[1:])


def test_a_pipe_gets_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_table(COLUMNS, [(LANE, REPOSITORY, "two\nlines")])
    assert capsys.readouterr().out.splitlines()[1] == f"{LANE}\t{REPOSITORY}\ttwo lines"
