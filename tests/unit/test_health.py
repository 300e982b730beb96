"""The sign of life is fresh while a service works, and grows old as soon as it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from screentest.kit import health


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "EVERY_S", 0.01)


async def _shown(path: Path, well: list[bool]) -> bool:
    """Whether the file appeared while the service said ``well``, looked at for a few beats."""
    async with asyncio.TaskGroup() as group:
        shown = group.create_task(health.show(path, lambda: well[0]))
        for _ in range(30):
            await asyncio.sleep(0.01)
            if is_there(path):
                break
        shown.cancel()
    return is_there(path)


def is_there(path: Path) -> bool:
    return path.exists()


@pytest.mark.usefixtures("fast")
async def test_file_appears_while_the_service_is_well_and_not_while_it_is_cut_off(tmp_path: Path) -> None:
    assert not await _shown(tmp_path / "cut-off", [False])
    assert await _shown(tmp_path / "well", [True])


async def test_without_a_file_nothing_is_shown() -> None:
    await health.show(None, lambda: True)
