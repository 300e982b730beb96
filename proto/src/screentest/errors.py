"""The errors a caller can act on, and the one table that maps them to gRPC status codes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One input field that cannot be used, and what to do about it. ``field`` is a proto path: ``spec.lane_ids[1]``."""

    field: str
    description: str


class ScreentestError(Exception):
    """Base of every error a person may see; the message says what, which, and what to do."""


class BadRequest(ScreentestError):
    """The input cannot be used as given."""

    def __init__(self, message: str, violations: tuple[FieldViolation, ...] = ()) -> None:
        super().__init__(message)
        self.violations = violations


class NotFound(ScreentestError):
    """No such sweep, job, lane, GPU or object."""


class Conflict(ScreentestError):
    """The request contradicts what is already written."""


class AlreadyExists(Conflict):
    """The client request id was used before with other content."""


class NotPossibleNow(Conflict):
    """The state of the job, sweep or GPU does not allow it."""


class Unavailable(ScreentestError):
    """A service this call needs does not answer; the message names it and how to start it."""


class Exhausted(ScreentestError):
    """A limit is reached: the disk, the stream or the upload size."""


class Unauthenticated(ScreentestError):
    """The bearer token is missing or wrong."""


# gRPC status names (grpc.StatusCode members), most specific class first: the first match wins.
GRPC_CODES: tuple[tuple[type[ScreentestError], str], ...] = (
    (BadRequest, "INVALID_ARGUMENT"),
    (NotFound, "NOT_FOUND"),
    (AlreadyExists, "ALREADY_EXISTS"),
    (NotPossibleNow, "FAILED_PRECONDITION"),
    (Conflict, "ABORTED"),
    (Unavailable, "UNAVAILABLE"),
    (Exhausted, "RESOURCE_EXHAUSTED"),
    (Unauthenticated, "UNAUTHENTICATED"),
)


def grpc_code(error: ScreentestError) -> str:
    """The gRPC status name for an error; INTERNAL for a class that has none."""
    return next((code for kind, code in GRPC_CODES if isinstance(error, kind)), "INTERNAL")


def from_grpc_code(code: str, message: str, violations: tuple[FieldViolation, ...] = ()) -> ScreentestError:
    """The error a client raises for a gRPC status name."""
    if code == "INVALID_ARGUMENT":
        return BadRequest(message, violations)
    if code in {"DEADLINE_EXCEEDED", "CANCELLED"}:
        return Unavailable(message)
    kind = next((kind for kind, name in GRPC_CODES if name == code), ScreentestError)
    return kind(message)
