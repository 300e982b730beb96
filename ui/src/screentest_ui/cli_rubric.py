"""rubric draft, edit, check, approve: what a prompt asks for, as a file that a person edits and stands for."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from screentest import drafting, rubric
from screentest.errors import BadRequest, Conflict, ScreentestError
from screentest.rubric import Rubric
from screentest_ui import printing, sweepfile
from screentest_ui.panel_text import counted
from screentest_ui.rubric_writer import Writer

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A rubric, for example deploy/rubrics/architects-stillness.json.")
]
OfSweep = Annotated[Path | None, typer.Option("--sweep", help="Also compare it with the prompt of this sweep file.")]


def draft(
    file: Annotated[Path | None, typer.Argument(metavar="[SWEEPFILE]", help="A sweep file with one prompt.")] = None,
    prompt: Annotated[str, typer.Option(help="A prompt, instead of a sweep file.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write it here instead of showing it; never over a file.")] = None,
    llm: Annotated[
        bool, typer.Option("--llm", help="Ask the language model of SCREENTEST_DRAFT_URL; rules where it fails.")
    ] = False,
) -> None:
    """Draft a rubric by rules, or by a language model.

    Edit it, then approve it.
    """
    if (file is None) == (not prompt):
        raise BadRequest("give a sweep file or --prompt, and not both")
    asked = prompt if file is None else _prompt(file)
    drafted = _written(asked) if llm else drafting.draft(asked)
    if out is None:
        typer.echo(rubric.to_json(drafted), nl=False)
        return
    if out.exists():
        raise Conflict(f"{out} is there already; choose another name, a rubric may hold a person's work")
    out.write_text(rubric.to_json(drafted), encoding="utf-8")
    printing.say(f"{out}: {_summary(drafted)}; edit it, then `screentest rubric approve {out} --by NAME`")


def edit(file: File) -> None:
    """Edit a rubric in $EDITOR; it is checked before it is kept.

    What you wrote is never lost: a mistake is told, and the editor opens again on your text.
    """
    before = _read(file)
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    descriptor, name = tempfile.mkstemp(prefix=f"{file.stem}-", suffix=".json", dir=file.parent)
    os.close(descriptor)
    written = Path(name)
    written.write_text(rubric.to_json(before), encoding="utf-8")
    while True:
        try:
            ended = subprocess.run([*editor, os.fspath(written)], check=False).returncode
        except OSError as error:
            written.unlink()
            raise BadRequest(f"the editor {editor[0]} cannot be started ({error.strerror}); set EDITOR") from error
        try:
            after = _read(written)
            break
        except BadRequest as error:
            printing.note(f"error: {error}")
            if ended != 0 or not typer.confirm("Edit it again?", default=True):
                raise BadRequest(f"{file} stays as it was; what you wrote is in {written}") from error
    if after == before:
        written.unlink()
        printing.say(f"{file}: nothing was changed")
        return
    _replace(file, after)
    written.unlink()
    printing.say(f"{file}: {_summary(after)}")
    if after.is_draft and not before.is_draft:
        printing.note(
            f"{before.approved_by} approved what it asked before; `screentest rubric approve {file} --by NAME`"
        )


def check(
    file: File,
    sweep: OfSweep = None,
    json: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False,
) -> None:
    """Say whether a rubric is right, who approved it, and its hash."""
    read = _read(file)
    foreign = _compare(read, file, sweep)
    if json:
        printing.as_json(_facts(read, foreign))
        return
    printing.say(f"{file}: {_summary(read)}")
    _tell_foreign(foreign)


def approve(
    file: File,
    by: Annotated[str, typer.Option("--by", help="Who read it and stands for it.")],
    sweep: OfSweep = None,
) -> None:
    """Approve a rubric as it is now. An edit afterwards makes a draft of it again."""
    read = _read(file)
    foreign = _compare(read, file, sweep)
    approved = rubric.approve(read, by, str(file))
    _replace(file, approved)
    printing.say(f"{file}: {_summary(approved)}")
    _tell_foreign(foreign)


def _written(prompt: str) -> Rubric:
    """By the language model; by rules, saying why, where it gives none that can be used."""
    writer = Writer.from_environment(os.environ)
    try:
        return writer.draft(prompt)
    except ScreentestError as error:
        printing.note(f"drafted by rules instead: {error}")
        return drafting.draft(prompt)


def _replace(file: Path, content: Rubric) -> None:
    """A full disk must not leave half a rubric behind."""
    written = file.with_name(f".{file.name}.{os.getpid()}")
    written.write_text(rubric.to_json(content), encoding="utf-8")
    written.replace(file)


def _read(file: Path) -> Rubric:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"rubric {file} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"rubric {file} is no UTF-8 text: {error}") from error
    return rubric.from_json(text, str(file))


def _prompt(file: Path) -> str:
    prompts = sweepfile.load(file).prompts
    if len(prompts) != 1:
        raise BadRequest(f"{file} has {counted(len(prompts), 'prompt')}, a rubric is for one; give it with --prompt")
    return prompts[0]


def _compare(read: Rubric, file: Path, sweep: Path | None) -> tuple[str, ...]:
    """Ids of elements that the prompt does not speak of. BadRequest where the rubric is for another prompt."""
    if sweep is None:
        return ()
    prompt = _prompt(sweep)
    if not read.is_for(prompt):
        wanted = rubric.prompt_sha256(prompt)
        message = f"{file}: prompt_sha256: is for another prompt than that of {sweep}, whose hash is {wanted}"
        raise BadRequest(f"{message}; read it against that prompt, then change the hash, or draft a new rubric")
    return rubric.strangers(read, prompt)


def _summary(read: Rubric) -> str:
    state = f"approved by {read.approved_by}" if read.approved_by else "draft"
    if read.is_draft and read.approved:
        state = f"draft: edited since {read.approved.by} approved it"
    parts = f"{counted(len(read.elements), 'element')}, {counted(len(read.beats), 'beat')}"
    return f"{parts}, {state}, hash {read.sha256[:16]}"


def _tell_foreign(foreign: tuple[str, ...]) -> None:
    if foreign:
        printing.err().print(f"the prompt has no word of: {', '.join(foreign)}", markup=False)


def _facts(read: Rubric, foreign: tuple[str, ...]) -> dict[str, object]:
    return {
        "elements": len(read.elements),
        "beats": len(read.beats),
        "source": read.source,
        "is_draft": read.is_draft,
        "approved_by": read.approved_by,
        "sha256": read.sha256,
        "prompt_sha256": read.prompt_sha256,
        "not_in_prompt": list(foreign),
    }
