"""structlog, set up once per process: JSON lines in containers, a console on a terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from contextlib import AbstractContextManager
from typing import TextIO, cast

import structlog

from screentest.records import JobSpec


def configure(service: str, *, log_format: str = "auto", level: str = "info") -> None:
    """Binds the service name to every line. Output goes to stderr: stdout belongs to results."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    # Libraries that use the standard logger: warnings and worse, one plain line each.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def about(spec: JobSpec, attempt: int) -> AbstractContextManager[None]:
    """Every line within, also of tasks that begin within, names the attempt that it is about."""
    return structlog.contextvars.bound_contextvars(
        sweep=spec.sweep_id, lane=spec.lane_id, job=spec.job_id, attempt=attempt
    )


class _Unfailing(io.TextIOBase):
    """A stream whose errors stay with it: a full disk under the log ended the scheduler, and must not."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
