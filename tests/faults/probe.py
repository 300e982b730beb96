"""Who is on a device, as the kernel tells it: samples /proc while faults happen, and writes what changed to a log.

It knows nothing of the product but two names: the lock files below one folder, and the marker that every process of a
stack inherits. ``python -m tests.faults.probe LOCKS MARKER LOG`` runs until it is killed; one JSON line per change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

SAMPLE_S = 0.02
RUNNER_WORDS = ("screentest_runner", "odd_runner")
# A helper of the worker, without the lock's descriptor and without the device.
HELPER_WORDS = ("screentest_runner.encode",)

Family = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """``holders``: pids that took each lock file, by its name; ``alive``: pids of runners by family; boot clock in ns.

    ``before_ns``: when the sample before this one was taken, which still showed what was logged last. A family is a
    runner and what it forked: a fork keeps the stack's random address, a fresh program gets its own.
    """

    at_ns: int
    before_ns: int
    holders: Mapping[str, tuple[int, ...]]
    alive: Mapping[Family, tuple[int, ...]]


class Probe:
    """One look at a time. Each process's command line and environment are read once."""

    def __init__(self, locks: Path, marker: str) -> None:
        self._locks = locks
        self._marker = marker.encode()
        self._known: dict[tuple[int, str], Family | None] = {}
        self._at_ns = 0

    def look(self) -> Sample:
        before_ns, self._at_ns = self._at_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        alive: dict[Family, list[int]] = {}
        seen: dict[tuple[int, str], Family | None] = {}
        for entry in os.listdir("/proc"):  # noqa: PTH208  (a Path for each of 300 entries costs half the sample)
            if not entry.isdigit() or (fields := _stat(entry)) is None:
                continue
            key = (int(entry), fields[19])  # start time: a recycled pid is another process
            family = self._known[key] if key in self._known else self._family(entry, fields)
            seen[key] = family
            if family is not None:
                alive.setdefault(family, []).append(int(entry))
        self._known = seen
        families = {name: tuple(sorted(pids)) for name, pids in alive.items()}
        return Sample(at_ns=self._at_ns, before_ns=before_ns, holders=self._holders(), alive=families)

    def _family(self, pid: str, fields: list[str]) -> Family | None:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return None
        is_runner = any(word in command for word in RUNNER_WORDS)
        if not is_runner or any(word in command for word in HELPER_WORDS) or self._marker not in environment:
            return None
        return fields[25]  # startstack

    def _holders(self) -> dict[str, tuple[int, ...]]:
        rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        found: dict[str, tuple[int, ...]] = {}
        for path in self._locks.glob("*.lock"):
            status = path.stat()
            name = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
            found[path.name] = tuple(int(row[4]) for row in rows if row[1] == "FLOCK" and row[5] == name)
        return found


def _stat(pid: str) -> list[str] | None:
    """The fields of /proc/<pid>/stat behind the name, the state first; None for a process that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else fields


def main() -> None:
    locks, marker, log = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    probe, last = Probe(locks, marker), None
    with log.open("a") as file:
        while True:
            sample = probe.look()
            known = (sample.holders, sample.alive)
            if known != last:
                file.write(json.dumps(asdict(sample)) + "\n")
                file.flush()
                last = known
            time.sleep(SAMPLE_S)


def read(log: Path) -> tuple[Sample, ...]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return tuple(
        Sample(
            at_ns=line["at_ns"],
            before_ns=line["before_ns"],
            holders={name: tuple(pids) for name, pids in line["holders"].items()},
            alive={name: tuple(pids) for name, pids in line["alive"].items()},
        )
        for line in lines
    )


@contextmanager
def probing(locks: Path, marker: str, log: Path) -> Iterator[None]:
    """A probe beside what follows; its log is whole afterwards."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.faults.probe", str(locks), marker, str(log)]
    process = subprocess.Popen(command, cwd=root)
    deadline = time.monotonic() + 20
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, "the probe died"
        assert time.monotonic() < deadline, "the probe does not begin"
        time.sleep(0.02)
    try:
        yield
        time.sleep(2 * SAMPLE_S)
        assert process.poll() is None, "the probe died: nothing was watched"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
