"""Whether an attempt can still end in time, judged by its own first steps: minutes are saved that would end in nothing.

Pure: no clock.
"""

from __future__ import annotations

from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass

FIRST_JUDGED_STEP = 2  # the first one also pays for kernels that are chosen, compiled or moved to the device


def check_pace(limit_s: float, *, elapsed_s: float, fastest_s: float, done: int, steps: int) -> None:
    """Raises AttemptFailure(timeout) when even at its fastest pace the attempt would pass its limit, the decoding not
    counted: what that takes nobody knows as well as the steps say what they take.

    limit_s, elapsed_s: from the attempt's beginning. fastest_s: of the steps after the first. done: steps so far; of
    the last one on, only the clock of the supervisor counts, because what is left is not denoising.
    """
    if done < FIRST_JUDGED_STEP or done >= steps:
        return
    projected_s = elapsed_s + (steps - done) * fastest_s
    if projected_s > limit_s:
        raise AttemptFailure(
            FailureClass.TIMEOUT,
            f"a step takes {fastest_s:.3g} s, so {steps} steps would end after "
            f"{projected_s:,.0f} s, the limit is {limit_s:,.0f} s: stopped after step {done}; ask for fewer "
            "frames or steps or a smaller size, or retry: a retry has limits.attempt_s of the lane file",
        )
