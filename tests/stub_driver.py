"""A card that a test shows to the real pynvml: the stub library, built once, and the file that says what it shows."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml_stub" / "nvml_stub.c"
UUID = "GPU-57ab0000-0000-4000-8000-000000000000"


def build(folder: Path) -> Path:
    """The folder for LD_LIBRARY_PATH. AssertionError says what to install when there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "the NVML stub needs a C compiler: `apt-get install gcc libc6-dev`, or set PATH to one"
    library = folder / "libnvidia-ml.so.1"
    flags = ("-std=gnu11", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return folder


@dataclass
class Card:
    """What the driver says from the next call on. ``pids``: to bytes of device memory, None = it does not say."""

    library: Path
    control: Path
    model: str = "h200"
    power_mw: int = 412_500
    is_lost: bool = False
    pids: dict[int, int | None] = field(default_factory=dict)
    xids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._show()

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(self.library), "NVML_STUB_CONTROL": str(self.control)}

    def lose(self) -> None:
        self.is_lost = True
        self._show()

    def come_back(self) -> None:
        self.is_lost = False
        self._show()

    def raise_xid(self, number: int) -> None:
        """One more event, in order; it is delivered once."""
        self.xids.append(number)
        self._show()

    def run(self, pid: int, memory_bytes: int | None = None) -> None:
        self.pids[pid] = memory_bytes
        self._show()

    def end(self, pid: int) -> None:
        del self.pids[pid]
        self._show()

    def _show(self) -> None:
        lines = [f"card {self.model}", f"power_mw {self.power_mw}"]
        lines += ["lost"] if self.is_lost else []
        lines += [f"pid {pid} {'-' if used is None else used}" for pid, used in self.pids.items()]
        lines += [f"xid {number}" for number in self.xids]
        partial = self.control.with_name(self.control.name + ".partial")
        partial.write_text("\n".join(lines) + "\n")
        partial.replace(self.control)  # a reader sees one card or the other, never half of one
