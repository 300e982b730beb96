"""Run in the judge environment: judges and their requests, through the very door that the runner's loop uses.

stdin: a JSON list of orders, each with `lane`, `load` and `requests`. Last line of stdout: per order `failed` (of the
load, None where it is loaded), `versions` and `parts`, of each request its part of a judgement or `{"failed": [class,
message]}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from threading import Event
from typing import Any

import torch

from screentest_runner.failures import AttemptFailure
from screentest_runner.judging.judge import JUDGES, run


def main() -> None:
    torch.set_num_threads(1)  # tiny layers on a shared machine: sharing them out costs more than computing them
    print(json.dumps([_served(order) for order in json.load(sys.stdin)]))


def _served(order: dict[str, Any]) -> dict[str, Any]:
    judge = JUDGES[order["lane"]["adapter"]](order["lane"])
    versions = judge.prepare()
    ending = _ending(lambda: judge.load({"lane": order["lane"], **order["load"]}, "cpu"))
    failed = None if ending is None else ending["failed"]
    parts = [] if failed else [_ending(lambda r=request: _asked(judge, r)) for request in order["requests"]]
    return {"failed": failed, "versions": versions, "parts": parts}


def _asked(judge: Any, request: dict[str, Any]) -> dict[str, Any]:
    """With what was told of the progress, and cancelled after so many calls where the request says so."""
    told: list[tuple[int, int]] = []
    cancelled = Event()

    def progress(done: int, of: int) -> None:
        told.append((done, of))
        if done >= request.get("cancel_after", float("inf")):
            cancelled.set()

    part = run(judge, request, progress, cancelled)
    return {**part, "told": told}


def _ending(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except AttemptFailure as failure:
        return {"failed": [failure.failure_class.value, str(failure)]}


if __name__ == "__main__":
    main()
