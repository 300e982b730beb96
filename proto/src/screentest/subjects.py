"""The subjects of the bus, and the rule for every id that stands in one."""

from __future__ import annotations

import re

from screentest.errors import BadRequest, FieldViolation

EVENTS_STREAM = "EVENTS"
JOBS_STREAM = "JOBS"
VITALS_STREAM = "VITALS"

EVENTS_SUBJECTS = ("events.>", "sweeps.>", "control.>", "requests.>")
JOBS_SUBJECTS = ("jobs.>",)
VITALS_SUBJECTS = ("vitals.>",)

_ID = re.compile(r"[a-z0-9-]{1,63}")


def legal_form(text: str) -> str:
    """The nearest legal id: ``Wan2.1-T2V`` becomes ``wan2-1-t2v``."""
    plain = re.sub(r"['’]", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:63].strip("-") or "unnamed"


def is_legal(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def check_id(text: str, what: str, field: str = "") -> str:
    """Returns ``text``; BadRequest when a dot or another character would split or break the subject."""
    if is_legal(text):
        return text
    message = f"{what} {text!r} is not legal: use 1 to 63 of a-z, 0-9 and -, for example {legal_form(text)!r}"
    raise BadRequest(message, (FieldViolation(field=field, description=message),) if field else ())


def job_events(sweep_id: str, lane_id: str, job_id: str) -> str:
    return f"events.{sweep_id}.{lane_id}.{job_id}"


def sweep_job_events(sweep_id: str) -> str:
    """Filter: every job event of one sweep."""
    return f"events.{sweep_id}.>"


def sweep_events(sweep_id: str) -> str:
    return f"sweeps.{sweep_id}"


def control(host: str, device: str) -> str:
    return f"control.{host}.{device}"


def request_claim(request_sha256: str) -> str:
    return f"requests.{request_sha256}"


def dispatch(host: str, device: str, lane_id: str, job_id: str, attempt: int) -> str:
    return f"jobs.{host}.{device}.{lane_id}.{job_id}.{attempt}"


def dispatched_job(subject: str) -> str:
    """The job id in a dispatch subject."""
    return subject.split(".")[4]


def lane_dispatches(host: str, device: str, lane_id: str) -> str:
    """Filter: what the consumer of one lane pulls."""
    return f"jobs.{host}.{device}.{lane_id}.>"


def lane_consumer(host: str, device: str, lane_id: str) -> str:
    """Durable name of a lane's consumer on JOBS."""
    return f"{host}_{device}_{lane_id}"


def command(host: str, device: str, lane_id: str) -> str:
    return f"cmd.{host}.{device}.{lane_id}"


def alive(host: str, device: str, lane_id: str) -> str:
    return f"alive.{host}.{device}.{lane_id}"


def progress(sweep_id: str, lane_id: str, job_id: str) -> str:
    return f"progress.{sweep_id}.{lane_id}.{job_id}"


def sweep_progress(sweep_id: str) -> str:
    return f"progress.{sweep_id}.>"


def depot_url(lane_id: str) -> str:
    """Worker to scheduler: a signed URL for one object of one job of this lane."""
    return f"svc.depot.{lane_id}"


def proof(host: str, device: str) -> str:
    """Anyone to telemetry: the state of one device now."""
    return f"proof.{host}.{device}"


def device_facts(host: str, device: str) -> str:
    """Anyone to telemetry: DeviceFacts."""
    return f"device.{host}.{device}"


def device_fault(host: str, device: str) -> str:
    """Telemetry to the scheduler: a DeviceFault; answered when it is written down."""
    return f"fault.{host}.{device}"


def register_runner(host: str, device: str) -> str:
    """Worker to telemetry, before the runner opens the device: the Process that will hold it."""
    return f"register.{host}.{device}"


def vitals(host: str) -> str:
    return f"vitals.{host}"


def stream_of(subject: str) -> str:
    """The stream that stores a subject: EVENTS, JOBS or VITALS."""
    kind = subject.partition(".")[0]
    return {"jobs": JOBS_STREAM, "vitals": VITALS_STREAM}.get(kind, EVENTS_STREAM)


def restored_vitals(host: str, sweep_id: str) -> str:
    """Vitals of one sweep as its archive had them: they are older than what stands before them in the stream."""
    return f"vitals.{host}.{sweep_id}"


def parse_job_events(subject: str) -> tuple[str, str, str] | None:
    """(sweep id, lane id, job id) of an ``events.`` subject, None for any other."""
    parts = subject.split(".")
    return (parts[1], parts[2], parts[3]) if len(parts) == 4 and parts[0] == "events" else None
