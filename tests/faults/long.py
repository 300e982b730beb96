"""Hundreds of SIGKILLs of workers and runners, on stub lanes and on miniatures; what is left of the promises, counted.

``python -m tests.faults.long --kills 200 --miniature-kills 10 --seed 1`` prints a line per sweep and the totals; exit
status 1 when a promise was broken. It is no part of any other recipe. ``--minutes`` bounds the killing of each part:
the sweep in hand is brought to its end and everything is checked, so a long run may be split over several seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from screentest_ui import programs
from screentest_ui.home import Home
from tests.faults import checker, probe
from tests.faults.stack import Stack, evidence, is_over, kill_one, submit, wait_until_over

STUBS = ("stub", "stub-i2v")
MINIATURES = ("wan2-1-t2v-1-3b", "ltx-video-13b-distilled")


@dataclass
class Count:
    """``broken``: what the checker found, in words; ``survivors``: processes of the stack after it was taken down."""

    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    broken: list[str] = field(default_factory=list)
    survivors: int = 0

    def of(self, promise: str) -> int:
        return sum(words.startswith(promise) for words in self.broken)

    def done(self) -> str:
        return f"{self.kills.total()} kills {dict(self.kills)}, {self.sweeps} sweeps"

    def told(self) -> str:
        late = sum("goes on after its end" in words for words in self.broken)
        return (
            f"{self.done()}, terminal {dict(self.ends)}; "
            f"survivors {self.survivors}, overlaps {self.of('I2')}, late writes {late}, "
            f"jobs without exactly one end {self.of('I1') - late}, other broken promises "
            f"{len(self.broken) - self.of('I1') - self.of('I2')}"
        )


def killing(lanes: tuple[str, ...], kills: int, kill_s: float, choice: random.Random) -> Count:
    """Sweeps over these lanes until so many processes were killed, or for ``kill_s``, and the last sweep to its end."""
    count = Count()
    with tempfile.TemporaryDirectory(prefix="screentest-long-") as temporary:
        stack = Stack(folder=Path(temporary), home=Home(Path(temporary) / "home"), lanes=lanes)
        try:
            stack.up()
            with probe.probing(stack.locks, stack.running.marker, stack.probe_log):
                acknowledged = sweeps(stack, kills, kill_s, choice, count)
            found = asyncio.run(evidence(stack, acknowledged))
        except BaseException:
            say(f"stopped, nothing checked: {count.done()}")
            raise
        finally:
            stack.run("down", check=False)
        count.survivors = len(programs.marked(stack.running.marker))
    count.broken = checker.violations(found)
    count.ends = Counter(events[-1].state.value for events in found.jobs().values())
    return count


def sweeps(stack: Stack, kills: int, kill_s: float, choice: random.Random, count: Count) -> dict[str, int]:
    """The number of jobs of each sweep that was acknowledged."""
    victims = [*(f"worker-{lane}" for lane in stack.lanes), "runner", "runner"]
    acknowledged: dict[str, int] = {}
    began = time.monotonic()

    def goes_on() -> bool:
        return count.kills.total() < kills and time.monotonic() - began < kill_s

    while goes_on():
        count.sweeps += 1
        sweep_id, jobs = submit(stack, f"long {count.sweeps}", seeds=range(1, 5))
        acknowledged[sweep_id] = jobs
        while goes_on() and not is_over(stack, sweep_id):
            time.sleep(choice.uniform(0.2, 2.0))
            victim = kill_one(stack, choice, victims)
            count.kills.update([victim] if victim else [])
            stack.up()
        wait_until_over(stack, sweep_id, within_s=600)
        say(f"{sweep_id}: over after {time.monotonic() - began:.0f} s, {count.kills.total()} of {kills} kills")
    return acknowledged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="on stub lanes")
    parser.add_argument("--miniature-kills", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop killing after so many, in each part")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    choice, is_kept = random.Random(arguments.seed), True
    for name, lanes, kills in (
        ("stub lanes", STUBS, arguments.kills),
        ("miniatures", MINIATURES, arguments.miniature_kills),
    ):
        if not kills:
            continue
        count = killing(lanes, kills, 60 * arguments.minutes, choice)
        say(f"{name}, seed {arguments.seed}: {count.told()}")
        for words in count.broken:
            say(f"  {words}")
        is_kept = is_kept and not count.broken and not count.survivors
    return 0 if is_kept else 1


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
