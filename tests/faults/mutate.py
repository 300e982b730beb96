"""Breaks one guarantee at a time in a copy of the tree, and shows which test of the fault suite notices.

``python -m tests.faults.mutate`` runs every mutation of MUTATIONS against the tests that should notice it, and prints
a table; its exit status is 1 when a mutation survived. Names choose some of them; ``--list`` names them all.

The copy is a git worktree of HEAD in a temporary folder with an environment of its own: its packages come from the
copy, everything else from the environment that runs this.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "proto/src",
    "services/scheduler/src",
    "services/gpu-worker/src",
    "services/gpu-worker/runner",
    "services/telemetry/src",
    "services/reporter/src",
    "ui/src",
)
SERVERS = ("nats-server", "weed")
# A mutation may make a test wait for what never comes; each test has a limit of its own below this.
LIMIT_S = 400

WORKER = "services/gpu-worker/src/screentest_worker"
RUNNER = "services/gpu-worker/runner/screentest_runner"
SCHEDULER = "services/scheduler/src/screentest_scheduler"
TELEMETRY = "services/telemetry/src/screentest_telemetry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """``old`` stands exactly once in the file ``path``."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """``tests``: what should notice, as pytest's -k understands it."""

    name: str
    changes: tuple[Change, ...]
    tests: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A tree that may be broken: where it is, and the Python that runs it."""

    folder: Path
    python: Path

    def apply(self, mutation: Mutation) -> None:
        for change in mutation.changes:
            path = self.folder / change.path
            text = path.read_text()
            if text.count(change.old) != 1:
                raise SystemExit(
                    f"mutation {mutation.name!r}: its text stands {text.count(change.old)} times in {change.path}; "
                    "mend it in tests/faults/mutate.py"
                )
            path.write_text(text.replace(change.old, change.new))

    def restore(self, mutation: Mutation) -> None:
        paths = [change.path for change in mutation.changes]
        subprocess.run(["git", "checkout", "--quiet", "--", *paths], cwd=self.folder, check=True)

    def failures(self, expression: str) -> tuple[list[str], str]:
        """(names of the tests that failed, pytest's last line)."""
        command = [str(self.python), "-m", "pytest", "-q", "-x", "-m", "fault", "-k", expression, "tests"]
        environment = {**os.environ, "SCREENTEST_VENVS": str(ROOT / ".venvs")}
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return ["(did not end)"], f"no end within {LIMIT_S} s"
        finally:
            self.end_left_behind()
        found = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-400:]
        return [name.rpartition("::")[2] for name in found], last

    def end_left_behind(self) -> None:
        """A broken guarantee may be the one that ends processes: none of this copy outlives its tests."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.folder) in value for value in process.environ().values()):
                    process.kill()


@contextlib.contextmanager
def copied(commit: str = "HEAD") -> Iterator[Copy]:
    """A worktree of ``commit`` that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="screentest-mutations-") as temporary:
        folder = Path(temporary) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder), commit], cwd=ROOT, check=True)
        try:
            yield Copy(folder=folder, python=_environment(folder))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


def _environment(folder: Path) -> Path:
    """The copy's own Python: a .pth names its packages first, then what is installed here."""
    home = folder / ".venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    installed = sysconfig.get_paths()["purelib"]
    paths = [str(folder / package) for package in PACKAGES] + [installed]
    (home / "lib" / version / "site-packages" / "copy.pth").write_text("\n".join(paths) + "\n")
    for program in Path(sys.executable).parent.glob("screentest*"):
        _, _, rest = program.read_text().partition("\n")
        script = home / "bin" / program.name
        script.write_text(f"#!{python}\n{rest}")
        script.chmod(0o755)
    for server in SERVERS:
        (home / "bin" / server).symlink_to(Path(sys.executable).parent / server)
    return python


MUTATIONS = (
    Mutation(
        name="no flock",
        changes=(
            Change(
                path=f"{RUNNER}/loop.py",
                old="            fcntl.flock(request.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
                new="            fcntl.fcntl(request.lock_fd, fcntl.F_GETFD)\n",
            ),
        ),
        tests="lock_taken_behind_the_proof or frozen_worker_is_refused",
    ),
    Mutation(
        name="no guarded append",
        changes=(
            Change(
                path="proto/src/screentest/kit/bus.py",
                old="        EXPECTED_SEQUENCE_HEADER: str(append.expected_sequence),\n        EVENT_ID_HEADER",
                new="        EVENT_ID_HEADER",
            ),
        ),
        tests="late_append_is_refused or two_schedulers",
    ),
    Mutation(
        name="no subreaper walk",
        changes=(
            Change(path=f"{WORKER}/processes.py", old="    while living := below(", new="    while False and below("),
        ),
        tests="escaped_grandchild_dies or daemon_of_a_runner_that_ended",
    ),
    Mutation(
        name="no proof of release",
        changes=(
            Change(
                path=f"{TELEMETRY}/proofs.py",
                old="    if seen.problem:\n        return False, seen.problem\n",
                new='    return True, "believed"\n',
            ),
        ),
        tests="escaped_daemon_without_a_lock",
    ),
    Mutation(
        name="ack before AttemptEnded",
        changes=(
            Change(
                path=f"{WORKER}/finish.py",
                old="        written = await self._ledger.end(hand.dispatch, uploaded, ended.expected_sequence)\n",
                new="        await self.acknowledge(hand)\n"
                "        written = await self._ledger.end(hand.dispatch, uploaded, ended.expected_sequence)\n",
            ),
        ),
        tests="acknowledged_only_after_the_end_is_written",
    ),
    Mutation(
        name="LOCK_UN instead of close (runner)",
        changes=(
            Change(
                path=f"{RUNNER}/loop.py",
                old="        self._device = request.device\n        self._send(Locked())\n",
                new="        self._lock_fd = request.lock_fd\n        self._device = request.device\n"
                "        self._send(Locked())\n",
            ),
            Change(
                path=f"{RUNNER}/loop.py",
                old="                self._send(Stopped())\n",
                new="                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)\n"
                "                self._send(Stopped())\n",
            ),
        ),
        tests="outlives_its_runner_as_long_as_what_it_forked",
    ),
    Mutation(
        name="LOCK_UN instead of close (supervisor)",
        changes=(
            Change(path=f"{WORKER}/gpu_lock.py", old="        os.close(fd)\n", new="        flock(fd, LOCK_UN)\n"),
            Change(
                path=f"{WORKER}/gpu_lock.py",
                old="import os\nfrom collections",
                new="import os\nfrom fcntl import LOCK_UN, flock\nfrom collections",
            ),
        ),
        tests="escaped_grandchild_dies_with_its_idle_runner or failure_retires_the_runner",
    ),
    Mutation(
        name="retry without budget",
        changes=(
            Change(
                path=f"{SCHEDULER}/transitions.py",
                old="    if entry.infrastructure_losses >= INFRASTRUCTURE_BUDGET:\n",
                new="    if entry.infrastructure_losses >= 1000 * INFRASTRUCTURE_BUDGET:\n",
            ),
        ),
        tests="lost_to_the_machine_are_tried_again_three_times",
    ),
    Mutation(
        name="conditional put off",
        changes=(Change(path=f"{WORKER}/upload.py", old='            "If-None-Match": "*",\n', new=""),),
        tests="every_upload_is_conditional",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="mutations to run; all of them when none is named")
    parser.add_argument("--list", action="store_true", help="name the mutations and stop")
    arguments = parser.parse_args()
    known = {mutation.name: mutation for mutation in MUTATIONS}
    if arguments.list:
        say("\n".join(known))
        return 0
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no mutation is called {unknown[0]!r}; --list names them")
    chosen = [known[name] for name in arguments.names] or list(MUTATIONS)
    with copied() as copy:
        survived = run(copy, chosen)
    return 1 if survived else 0


def run(copy: Copy, mutations: Sequence[Mutation]) -> list[str]:
    """Prints a row for each; returns the names of those that nobody noticed."""
    expression = " or ".join(f"({mutation.tests})" for mutation in mutations)
    failed, last = copy.failures(expression)
    if failed:
        raise SystemExit(f"the tree is red before anything is broken: {', '.join(failed)} ({last})")
    say(f"whole tree: {last}\n\n| mutation | noticed by | s |\n|---|---|---|")
    survived = []
    for mutation in mutations:
        began = time.monotonic()
        copy.apply(mutation)
        failed, last = copy.failures(mutation.tests)
        copy.restore(mutation)
        survived += [] if failed else [mutation.name]
        noticed = ", ".join(f"`{name}`" for name in failed) or f"NOBODY ({last})"
        say(f"| {mutation.name} | {noticed} | {time.monotonic() - began:.0f} |")
    return survived


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
