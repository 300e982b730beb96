"""Judges: one TOML file per judge configuration, read strictly. A judge is a lane: own queue, own worker, own runner.

It has a file type of its own because nothing of a pipeline (shapes, ladder, components) means anything to it.
Standard library only, for the reasons of `lanes`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from screentest import subjects
from screentest.errors import BadRequest
from screentest.lanes import Content, Device, Limits, Model, Value
from screentest.strict import read_table, require

Tier = Literal["a", "b", "c"]
Adapter = Literal["pixels", "embedding", "vlm", "endpoint"]

TIER_OF: Final[Mapping[Adapter, Tier]] = {"pixels": "a", "embedding": "b", "vlm": "c", "endpoint": "c"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeLane:
    """One judge file. `content` is the parsed file itself: what the digest covers and what the runner gets.

    adapter: a key of screentest_runner.judging.judge.JUDGES. model: None where nothing is to be fetched. settings: what
    the adapter takes, by its own names. needs_memory_gib: device memory that it takes, None where it takes none.
    """

    id: str
    title: str
    task: Literal["judge"]
    env: str
    device: Device
    adapter: Adapter
    limits: Limits
    model: Model | None = None
    settings: Mapping[str, Value] = field(default_factory=dict)
    needs_memory_gib: float | int | None = None
    content: Content = field(metadata={"key": None}, repr=False, compare=False)

    @property
    def tier(self) -> Tier:
        return TIER_OF[self.adapter]

    @property
    def judges_random_weights(self) -> bool:
        """Pixels say of any clip what they say; an opinion on random weights would be an invented number."""
        return self.tier == "a"

    @property
    def digest(self) -> str:
        """sha256 in hex of the canonical JSON of the file's content; comments and layout do not count."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_judges(folder: Path) -> dict[str, JudgeLane]:
    """Every `*.toml` of the folder by id, in the order of file names; a folder without any is no error."""
    return {judge.id: judge for judge in map(load_judge, sorted(folder.glob("*.toml")))}


def load_judge(path: Path) -> JudgeLane:
    """One judge file; its name must be `<id>.toml`. Raises BadRequest."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such judge file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: not a TOML file: {error}") from error
    judge = from_json(content, str(path))
    if path.stem != judge.id:
        raise BadRequest(f"{path}: holds the judge {judge.id!r}; name the file {judge.id}.toml")
    return judge


def from_json(content: dict[str, Any], source: str) -> JudgeLane:
    """A judge from the content of its file. `source` names it in errors."""
    judge = cast("JudgeLane", read_table(JudgeLane, content, source, "", {"content": content}))
    require(
        subjects.is_legal(judge.id),
        source,
        "id",
        f"{judge.id!r} is not legal: call it {subjects.legal_form(judge.id)!r}",
    )
    needs_weights = judge.adapter in ("embedding", "vlm")
    require((judge.model is not None) == needs_weights, source, "model", _MODEL_RULE)
    require((judge.device == "remote") == (judge.adapter == "endpoint"), source, "device", _REMOTE_RULE)
    return judge


_MODEL_RULE: Final = "must be there exactly when the adapter is 'embedding' or 'vlm'"
_REMOTE_RULE: Final = "must be 'remote' exactly when the adapter is 'endpoint'"
