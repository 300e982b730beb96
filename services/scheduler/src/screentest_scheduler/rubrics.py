"""Rubrics in the depot: checked, drafted where nobody gave one, stored by content and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import resources

from screentest import drafting, objects, rubric
from screentest.errors import BadRequest, FieldViolation
from screentest.kit.store import Store
from screentest.records import ArtifactKind, RubricRef
from screentest.rubric import Rubric

MAX_UPLOAD_BYTES = 1024 * 1024
# Asked as the wrong prompt of a sweep that has only one.
STRANGER = "control_rubric.json"


class Rubrics:
    """What is stored once never changes, so it is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Rubric] = {}

    async def accept(self, name: str, data: bytes, prompt: str, prompt_index: int) -> RubricRef:
        """Stores a rubric that somebody wrote. BadRequest names what is wrong with it."""
        if len(data) > MAX_UPLOAD_BYTES:
            raise _refused("json", f"rubric {name!r} is larger than {MAX_UPLOAD_BYTES // 1024} KB")
        try:
            found = rubric.from_json(data.decode("utf-8"), name)
        except UnicodeDecodeError as error:
            raise _refused("json", f"{name} is not UTF-8: {error}") from error
        except BadRequest as error:
            raise _refused("json", str(error)) from error
        if prompt.strip() and not found.is_for(prompt):
            raise _refused("json", f"{name} is the rubric of another prompt; draft one from this prompt and edit it")
        return await self._keep(found, prompt_index)

    async def for_prompts(
        self, prompts: Sequence[str], given: Sequence[RubricRef], field: str
    ) -> tuple[RubricRef, ...]:
        """One per prompt: as given, else drafted; a prompt without words has none. BadRequest names ``field``."""
        await self.check(prompts, given, field)
        by_prompt = {ref.prompt_index: ref for ref in given}
        for prompt_index, prompt in enumerate(prompts):
            if prompt_index not in by_prompt and (found := drafted(prompt)) is not None:
                by_prompt[prompt_index] = await self._keep(found, prompt_index)
        return tuple(by_prompt[prompt_index] for prompt_index in sorted(by_prompt))

    async def check(self, prompts: Sequence[str], given: Sequence[RubricRef], field: str) -> None:
        """The client repeats what UploadRubric said; a worker builds a path and we sign a URL from it."""
        violations = []
        for index, ref in enumerate(given):
            if why := await self._wrong(prompts, given, index, ref):
                violations.append(FieldViolation(field=f"{field}[{index}]", description=why))
        if violations:
            raise BadRequest("; ".join(item.description for item in violations), tuple(violations))

    async def _wrong(self, prompts: Sequence[str], given: Sequence[RubricRef], index: int, ref: RubricRef) -> str:
        if not 0 <= ref.prompt_index < len(prompts):
            return f"rubric {index} is for prompt {ref.prompt_index}; the sweep has prompts 0 to {len(prompts) - 1}"
        if any(other.prompt_index == ref.prompt_index for other in given[:index]):
            return f"prompt {ref.prompt_index} has two rubrics; give one"
        stat = await self._store.stat(ref.key) if ref.key == objects.rubric(ref.sha256) else None
        if stat is None:
            return f"rubric {index} is not in the depot; upload it first and give what UploadRubric returns"
        found = await self.read(ref)
        if replace(ref, prompt_index=0) != reference(found, 0):
            return f"rubric {index} is not what the depot has under its key; give what UploadRubric returns"
        if not found.is_for(prompts[ref.prompt_index]):
            return f"rubric {index} was written for another prompt than prompt {ref.prompt_index}"
        return ""

    async def read(self, ref: RubricRef) -> Rubric:
        """Raises NotFound when it is gone from the depot, BadRequest when it is no rubric."""
        if ref.sha256 not in self._known:
            data = await self._store.get(ref.key)
            self._known[ref.sha256] = rubric.from_json(data.decode("utf-8"), ref.key)
        return self._known[ref.sha256]

    async def by_hash(self, refs: Iterable[RubricRef]) -> dict[str, Rubric]:
        """By what each of them asks."""
        return {ref.rubric_sha256: await self.read(ref) for ref in refs}

    async def stranger(self) -> RubricRef:
        """The rubric of a scene that nobody asked for, in the depot."""
        text = resources.files("screentest_scheduler").joinpath(STRANGER).read_text(encoding="utf-8")
        return await self._keep(rubric.from_json(text, STRANGER), 0)

    async def _keep(self, found: Rubric, prompt_index: int) -> RubricRef:
        ref = reference(found, prompt_index)
        if ref.sha256 not in self._known and await self._store.stat(ref.key) is None:
            await self._store.put(ref.key, _bytes(found), objects.content_type(ArtifactKind.RUBRIC))
        self._known[ref.sha256] = found
        return ref


def reference(found: Rubric, prompt_index: int) -> RubricRef:
    data = _bytes(found)
    sha256 = hashlib.sha256(data).hexdigest()
    return RubricRef(
        prompt_index=prompt_index,
        key=objects.rubric(sha256),
        sha256=sha256,
        size_bytes=len(data),
        rubric_sha256=found.sha256,
        approved_by=found.approved_by or "",
    )


def drafted(prompt: str) -> Rubric | None:
    """None where nothing can be drafted; `why_not` says why."""
    try:
        return drafting.draft(prompt)
    except BadRequest:
        return None


def why_not(prompts: Sequence[str], given: Iterable[RubricRef]) -> tuple[str, ...]:
    """A sentence per prompt that has no rubric and of which none can be drafted: its clips will not be scored."""
    found = []
    with_rubric = {ref.prompt_index for ref in given}
    for index, prompt in enumerate(prompts):
        if index in with_rubric:
            continue
        try:
            drafting.draft(prompt)
        except BadRequest as error:
            found.append(f"prompt {index + 1} gets no rubric and no score: {error}")
    return tuple(found)


def _bytes(found: Rubric) -> bytes:
    return rubric.to_json(found).encode()


def _refused(field: str, message: str) -> BadRequest:
    return BadRequest(message, (FieldViolation(field=field, description=message),))
