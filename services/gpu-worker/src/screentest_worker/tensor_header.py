"""The header of a safetensors file: names, dtypes and shapes, and whether the file is as long as the header says.

Format: 8 bytes little-endian length, that many bytes of JSON, then the tensors (huggingface/safetensors README).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

# The reference implementation reads no longer header either.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """dtype as safetensors names it: F32, F16, BF16, F8_E4M3, U8, ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Why a file is no whole safetensors file, as the end of a sentence about it."""

    why: str


def read(file: Path) -> Header | Broken:
    """Reads the header alone, whatever the size of the file."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= MAX_HEADER_BYTES:
                return Broken(why="is no safetensors file")
            if size < 8 + length:
                return Broken(why=f"is truncated: {size} bytes, its header alone has {8 + length}")
            content = json.loads(stream.read(length))
        rows = [(name, row) for name, row in content.items() if name != "__metadata__"]
        tensors = tuple(Tensor(name=name, dtype=row["dtype"], shape=tuple(row["shape"])) for name, row in rows)
        expected = 8 + length + max((row["data_offsets"][1] for _, row in rows), default=0)
    except OSError as error:
        return Broken(why=f"cannot be read: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Broken(why="has no readable safetensors header")
    if size < expected:
        return Broken(why=f"is truncated: {size} of {expected} bytes")
    if size > expected:
        return Broken(why=f"is {size - expected} bytes longer than its header says")
    return Header(tensors=tensors)
