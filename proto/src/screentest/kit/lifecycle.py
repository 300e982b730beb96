"""How a service starts, says that it is ready, and stops on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable

import structlog
from pydantic import ValidationError

from screentest.errors import ScreentestError
from screentest.kit import config

log = structlog.get_logger()

# Longer than any orderly stop of ours; grpc.aio can hang on shutdown (grpc/grpc#40989).
HARD_EXIT_AFTER_S = 30.0


def run(service: Callable[[asyncio.Event], Awaitable[None]], *, hard_exit_after_s: float = HARD_EXIT_AFTER_S) -> None:
    """Runs ``service(stopping)`` until it returns; ``stopping`` is set on the first SIGTERM or SIGINT.

    A ScreentestError ends the process with status 1 and its message on stderr: it is for a person, without traceback.
    """
    try:
        asyncio.run(_serve(service, hard_exit_after_s))
    except ValidationError as error:
        sys.exit(config.explain(error))
    except ScreentestError as error:
        sys.exit(str(error))
    except BaseExceptionGroup as group:
        expected, rest = group.split(ScreentestError)
        if expected is None or rest is not None:
            raise
        sys.exit("; ".join(str(error) for error in _leaves(expected)))


async def _serve(service: Callable[[asyncio.Event], Awaitable[None]], hard_exit_after_s: float) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(signal_number: int) -> None:
        log.info("stop_requested", signal=signal.Signals(signal_number).name)
        stopping.set()
        timer = threading.Timer(hard_exit_after_s, lambda: os._exit(70))
        timer.daemon = True
        timer.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    await service(stopping)


async def run_until(stopping: asyncio.Event, *loops: Awaitable[None]) -> None:
    """Runs the loops until ``stopping`` is set, then cancels them. The first error ends all of them and is raised."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_as_coroutine(loop)) for loop in loops]
        waiter = group.create_task(stopping.wait())
        waiter.add_done_callback(lambda _: [task.cancel() for task in tasks])


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return leaves
