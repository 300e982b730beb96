"""The one lane field of an assembled model: which component the first repository holds."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from screentest.errors import BadRequest
from screentest.lanes import from_json

LANES = Path(__file__).parents[2] / "deploy" / "lanes"


@pytest.mark.parametrize(
    ("lane_id", "change", "said"),
    [
        ("skyreels-v1-hunyuan-i2v", {"root_component": None}, "must be there exactly when model.base_repo is"),
        ("wan2-1-t2v-1-3b", {"root_component": "transformer"}, "must be there exactly when model.base_repo is"),
        ("skyreels-v1-hunyuan-i2v", {"root_component": "unet"}, "'unet' is no component"),
    ],
)
def test_root_component_names_a_component_exactly_when_there_is_a_base_repo(
    lane_id: str, change: dict[str, Any], said: str
) -> None:
    content = tomllib.loads((LANES / f"{lane_id}.toml").read_text())
    changed = {**content["model"], **change}
    content["model"] = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(BadRequest, match=said):
        from_json(content, "some.toml")
