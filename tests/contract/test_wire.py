"""What is sent is what arrives, and what is no message of the contract is refused."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from screentest import wire
from screentest.errors import BadRequest
from screentest.records import (
    Command,
    ControlEvent,
    JobEvent,
    JobState,
    Outcome,
    Parameter,
    Prepare,
    Stamp,
    SweepEvent,
    SweepSpec,
    Weights,
)
from screentest.v1 import events_pb2, jobs_pb2
from tests.contract import contract, examples, strategies

# Derandomized: a red run is red again. The generated values are as many as a second or two allows.
MODERATE = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("record_class", contract.RECORDS, ids=lambda item: item.__name__)
@MODERATE
@given(data=st.data())
def test_a_record_survives_the_wire(record_class: type, data: st.DataObject) -> None:
    record = data.draw(strategies.any_record(record_class))
    decoded = wire.decode(wire.encode(record), record_class)
    assert decoded == record
    assert repr(decoded) == repr(record)  # equality alone takes True for 1, 1 for 1.0 and 0.0 for -0.0


@given(value=strategies.PARAMETER_VALUES)
@settings(max_examples=200, derandomize=True, database=None)
def test_a_parameter_keeps_the_type_of_its_value(value: object) -> None:
    parameter = Parameter(name="guidance_scale", value=value)  # type: ignore[arg-type]
    assert type(wire.decode(wire.encode(parameter), Parameter).value) is type(value)


def test_nan_survives_the_wire() -> None:
    decoded = wire.decode(wire.encode(Parameter(name="eta", value=math.nan)), Parameter)
    assert isinstance(decoded.value, float)
    assert math.isnan(decoded.value)


def test_equal_records_have_equal_bytes() -> None:
    """The content hash of a sweep and the comparison of golden files stand on it."""
    [(_, record), *_] = examples.MESSAGES.items()
    again = wire.decode(wire.encode(record), type(record))
    assert wire.encode(again) == wire.encode(record)


def test_a_oneof_with_an_empty_message_is_set() -> None:
    assert wire.decode(wire.encode(Command(body=Prepare())), Command).body == Prepare()


@pytest.mark.parametrize("record_class", [JobEvent, SweepEvent, ControlEvent, Command])
def test_an_empty_oneof_is_refused_with_the_choices(record_class: type) -> None:
    payload = _without_body(record_class).SerializeToString()
    with pytest.raises(BadRequest, match=r"body is empty; set one of \w+, \w+"):
        wire.decode(payload, record_class)


def test_a_parameter_without_value_is_refused_by_name() -> None:
    with pytest.raises(BadRequest, match="'steps' has no value"):
        wire.decode(jobs_pb2.Parameter(name="steps").SerializeToString(), Parameter)


def test_an_unset_enum_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"SweepSpec\.weights is not set"):
        wire.decode(jobs_pb2.SweepSpec(title="t").SerializeToString(), SweepSpec)


def test_an_unset_optional_enum_is_absent() -> None:
    assert wire.decode(events_pb2.Outcome(cause="none").SerializeToString(), Outcome).failure_class is None


@pytest.mark.parametrize(
    ("message", "record_class", "told"),
    [
        (jobs_pb2.SweepSpec(title="t", weights=99), SweepSpec, "Weights has no value 99"),
        (events_pb2.Outcome(failure_class=99), Outcome, "FailureClass has no value 99"),
        (events_pb2.JobEvent(state=77), JobEvent, "JobState has no value 77"),
    ],
    ids=["required", "optional", "event"],
)
def test_an_unknown_enum_number_is_refused_never_guessed(message: Message, record_class: type, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        wire.decode(message.SerializeToString(), record_class)


def test_enum_member_names_the_choices_when_the_number_is_zero() -> None:
    with pytest.raises(BadRequest, match="weights is not set; give one of hub, miniature, full-random"):
        wire.enum_member(0, Weights)
    assert wire.enum_member(4, JobState) is JobState.ENDED


def test_a_time_beyond_the_calendar_is_refused() -> None:
    """A client may send any number of seconds; it used to end as an internal error."""
    message = jobs_pb2.SweepSpec(title="t", weights=1)
    message.expires_at.seconds = 10**15
    with pytest.raises(BadRequest, match="time"):
        wire.decode(message.SerializeToString(), SweepSpec)


def test_nanoseconds_are_cut_to_microseconds() -> None:
    message = events_pb2.Stamp(boot_id="boot-a")
    message.at.FromNanoseconds(1_000_001_999)
    assert wire.from_wire(message, Stamp).at == datetime(1970, 1, 1, 0, 0, 1, 1, tzinfo=UTC)


def test_bytes_of_something_else_are_refused() -> None:
    with pytest.raises(BadRequest, match="no JobEvent"):
        wire.decode(b"\xff\xff\xff", JobEvent)


@pytest.mark.parametrize("name", examples.MESSAGES)
@MODERATE
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read_but_never_break_the_reader(name: str, data: st.DataObject) -> None:
    record = examples.MESSAGES[name]
    payload = bytearray(wire.encode(record))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(wire.decode(bytes(payload), type(record)), type(record))
    except BadRequest as error:
        assert str(error)


def _without_body(record_class: type) -> Message:
    if record_class is JobEvent:
        return events_pb2.JobEvent(job_id="job", state=1)
    return wire.message_class(record_class)()
