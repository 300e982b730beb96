"""Sweep files: what to ask of which lanes, as strict TOML. An unknown key is an error that names the nearest one."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from screentest.errors import BadRequest
from screentest.records import Keyframe, Requested, RubricRef, SweepSpec, Weights

_SWEEP_KEYS = (
    "title",
    "prompt",
    "prompts",
    "lanes",
    "seeds",
    "weights",
    "keyframe",
    "rubric",
    "rubrics",
    "judges",
    "skip_impossible",
    "paused",
    "priority",
    "memory_cap_gib",
    "requested",
)
_REQUESTED_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "width_px": int,
    "height_px": int,
    "num_frames": int,
    "steps": int,
    "guidance_scale": (int, float),
    "fps": (int, float),
    "negative_prompt": str,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFile:
    """One sweep file. ``keyframe`` and ``rubrics`` are paths from the file's folder; uploading makes records of them.

    ``rubrics``: in the order of the prompts, empty = each prompt gets a draft.
    """

    title: str
    prompts: tuple[str, ...]
    lane_ids: tuple[str, ...]
    seeds: tuple[int, ...] = (42,)
    weights: Weights = Weights.HUB
    keyframe: Path | None = None
    rubrics: tuple[Path, ...] = ()
    judge_lane_ids: tuple[str, ...] = ()
    skip_impossible: bool = False
    paused: bool = False
    priority: int = 0
    memory_cap_gib: float | None = None
    requested: Requested = field(default_factory=Requested)

    def with_options(
        self,
        *,
        lane_ids: tuple[str, ...] = (),
        seeds: tuple[int, ...] = (),
        weights: Weights | None = None,
        keyframe: Path | None = None,
        memory_cap_gib: float | None = None,
        skip_impossible: bool | None = None,
    ) -> SweepFile:
        """What was given on the command line wins over the file."""
        return replace(
            self,
            lane_ids=lane_ids or self.lane_ids,
            seeds=seeds or self.seeds,
            weights=weights or self.weights,
            keyframe=keyframe or self.keyframe,
            memory_cap_gib=self.memory_cap_gib if memory_cap_gib is None else memory_cap_gib,
            skip_impossible=self.skip_impossible if skip_impossible is None else skip_impossible,
        )

    def spec(self, keyframe: Keyframe | None, rubrics: tuple[RubricRef, ...] = ()) -> SweepSpec:
        return SweepSpec(
            title=self.title,
            prompts=self.prompts,
            lane_ids=self.lane_ids,
            seeds=self.seeds,
            weights=self.weights,
            keyframe=keyframe,
            requested=self.requested,
            skip_impossible=self.skip_impossible,
            paused=self.paused,
            priority=self.priority,
            memory_cap_gib=self.memory_cap_gib,
            judge_lane_ids=self.judge_lane_ids,
            rubrics=rubrics,
        )


def load(path: Path) -> SweepFile:
    """BadRequest names the file, the key and what is legal there."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"sweep file {path} cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} is no TOML: {error}") from error
    return parse(content, path)


def parse(content: Mapping[str, Any], path: Path) -> SweepFile:
    """``path`` names the file in errors, and relative keyframes are beside it."""
    read = _Reader(content, str(path))
    read.refuse_unknown(_SWEEP_KEYS)
    prompts = read.texts("prompts") or ((read.text("prompt"),) if "prompt" in content else ())
    if "prompt" in content and "prompts" in content:
        raise BadRequest(f"{path}: give either prompt or prompts, not both")
    keyframe = read.text("keyframe")
    rubrics = read.texts("rubrics") or ((read.text("rubric"),) if "rubric" in content else ())
    if "rubric" in content and "rubrics" in content:
        raise BadRequest(f"{path}: give either rubric or rubrics, not both")
    if len(rubrics) not in {0, len(prompts)}:
        raise BadRequest(
            f"{path}: {len(rubrics)} rubrics for {len(prompts)} prompts; give one for each, in their order"
        )
    return SweepFile(
        title=read.text("title") or path.stem,
        prompts=prompts,
        lane_ids=read.texts("lanes"),
        seeds=read.integers("seeds") or (42,),
        weights=_weights(read, path),
        keyframe=path.parent / keyframe if keyframe else None,
        rubrics=tuple(path.parent / name for name in rubrics),
        judge_lane_ids=read.texts("judges"),
        skip_impossible=read.flag("skip_impossible"),
        paused=read.flag("paused"),
        priority=read.integer("priority"),
        memory_cap_gib=read.number("memory_cap_gib"),
        requested=_requested(read, path),
    )


def weights(text: str, where: str) -> Weights:
    try:
        return Weights(text)
    except ValueError:
        legal = ", ".join(member.value for member in Weights)
        raise BadRequest(f"{where}: weights {text!r} are unknown; use one of {legal}") from None


def _weights(read: _Reader, path: Path) -> Weights:
    text = read.text("weights")
    return weights(text, str(path)) if text else Weights.HUB


def _requested(read: _Reader, path: Path) -> Requested:
    table = read.content.get("requested", {})
    if not isinstance(table, dict):
        raise BadRequest(f"{path}: requested must be a table: write [requested] on a line of its own")
    inner = _Reader(table, f"{path} [requested]")
    inner.refuse_unknown(tuple(item.name for item in fields(Requested)))
    for name, value in table.items():
        kinds = _REQUESTED_KINDS[name]
        if isinstance(value, bool) or not isinstance(value, kinds):
            wanted = "text" if kinds is str else "a whole number" if kinds is int else "a number"
            raise BadRequest(f"{path} [requested]: {name} must be {wanted}, not {value!r}")
    values: dict[str, Any] = {name: float(value) if _is_float(name) else value for name, value in table.items()}
    return Requested(**values)


def _is_float(name: str) -> bool:
    return isinstance(_REQUESTED_KINDS[name], tuple)


class _Reader:
    """Typed reading of one TOML table; every error names the place, the key and what is legal."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content = content
        self._where = where

    def refuse_unknown(self, legal: Iterable[str]) -> None:
        known = tuple(legal)
        for key in self.content:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"legal are {', '.join(known)}"
                raise BadRequest(f"{self._where}: unknown key {key!r}; {hint}")

    def text(self, key: str) -> str:
        value = self.content.get(key, "")
        if not isinstance(value, str):
            raise BadRequest(f"{self._where}: {key} must be text, not {value!r}")
        return value.strip()

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(item.strip() for item in self._list(key, str, "texts"))

    def integers(self, key: str) -> tuple[int, ...]:
        return self._list(key, int, "whole numbers")

    def integer(self, key: str) -> int:
        value = self.content.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadRequest(f"{self._where}: {key} must be a whole number, not {value!r}")
        return value

    def number(self, key: str) -> float | None:
        value = self.content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadRequest(f"{self._where}: {key} must be a number, not {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.content.get(key, False)
        if not isinstance(value, bool):
            raise BadRequest(f"{self._where}: {key} must be true or false, not {value!r}")
        return value

    def _list(self, key: str, kind: type, plural: str) -> tuple[Any, ...]:
        value = self.content.get(key, [])
        if not isinstance(value, list) or any(isinstance(item, bool) or not isinstance(item, kind) for item in value):
            raise BadRequest(f"{self._where}: {key} must be a list of {plural}, not {value!r}")
        return tuple(value)
