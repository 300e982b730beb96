"""SkyReels V1: its repository holds a bare transformer; every other part is HunyuanVideo's (SkyReels-V1 issue 18)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from screentest_runner.adapters.diffusers import DiffusersAdapter
from screentest_runner.miniature import component_class


class SkyReelsV1Adapter(DiffusersAdapter):
    """main: the folder with the transformer at its root. base: the pipeline it replaces the transformer of."""

    def assemble(self, main: Path, base: Path | None) -> Any:
        assert base is not None
        part = self.lane["components"]["transformer"]
        transformer = component_class(part, "transformer", self.lane["id"]).from_pretrained(
            main, dtype=self.dtype_of("transformer"), use_safetensors=True, local_files_only=True
        )
        return self.from_folder(base, transformer=transformer)
