"""The records are the messages: the same fields, the same types, the same closed sets."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from enum import StrEnum

import pytest
from google.protobuf.descriptor import FieldDescriptor

from screentest import wire
from screentest.v1 import scheduler_pb2
from tests.contract import contract

# A list of numbers inside a oneof needs a message around it; in the record it is a plain tuple.
ONLY_ON_THE_WIRE = {"DoubleList"}
SCALARS = {
    bool: {FieldDescriptor.TYPE_BOOL},
    int: {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64},
    float: {FieldDescriptor.TYPE_DOUBLE},
    str: {FieldDescriptor.TYPE_STRING},
}


def record_id(record_class: type) -> str:
    return record_class.__name__


def envelopes() -> set[str]:
    """Messages that exist only as the request or the reply of a call."""
    methods = scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"].methods
    names = {name for method in methods for name in (method.input_type.name, method.output_type.name)}
    return {name for name in names if name.endswith(("Request", "Response"))}


def test_every_message_but_the_envelopes_of_calls_has_a_record() -> None:
    with_record = {wire.message_class(record_class).DESCRIPTOR.name for record_class in contract.RECORDS}
    assert set(contract.MESSAGES) - with_record == envelopes() | ONLY_ON_THE_WIRE


def test_no_two_records_share_a_message() -> None:
    names = [wire.message_class(record_class).DESCRIPTOR.full_name for record_class in contract.RECORDS]
    assert len(names) == len(set(names)) > 50


@pytest.mark.parametrize("record_class", contract.RECORDS, ids=record_id)
def test_a_record_has_the_fields_of_its_message(record_class: type) -> None:
    message = wire.message_class(record_class).DESCRIPTOR
    in_oneofs = {field.name for oneof in _real_oneofs(message) for field in oneof.fields}
    expected = {field.name for field in message.fields} - in_oneofs | {oneof.name for oneof in _real_oneofs(message)}
    assert {field.name for field in dataclasses.fields(record_class)} == expected


@pytest.mark.parametrize("record_class", contract.RECORDS, ids=record_id)
def test_a_record_has_the_types_of_its_message(record_class: type) -> None:
    message = wire.message_class(record_class).DESCRIPTOR
    for name, hint in contract.hints(record_class).items():
        field = message.fields_by_name.get(name)
        if field is None:
            continue  # a oneof, below
        item = contract.item_of(hint)
        assert (item is not None) == contract.is_repeated(field), f"{record_class.__name__}.{name}"
        [kind] = contract.members(item or hint)
        assert _fits(kind, field), f"{record_class.__name__}.{name}: {hint} is no {field.type}"
        if field.message_type is None and field.enum_type is None and item is None:
            # Without presence on the wire an absent value would come back as 0 or "".
            assert contract.is_optional(hint) == field.has_presence, f"{record_class.__name__}.{name}"


@pytest.mark.parametrize("record_class", contract.RECORDS, ids=record_id)
def test_a_union_of_records_is_the_oneof_of_that_name(record_class: type) -> None:
    for oneof in _real_oneofs(wire.message_class(record_class).DESCRIPTOR):
        if record_class.__name__ == "Parameter":
            assert [field.name for field in oneof.fields] == ["flag", "integer", "number", "text", "numbers"]
            continue
        kinds = contract.members(contract.hints(record_class)[oneof.name])
        assert {field.message_type.name for field in oneof.fields} == {kind.__name__ for kind in kinds}


@pytest.mark.parametrize("kind", contract.STR_ENUMS, ids=record_id)
def test_a_str_enum_covers_its_enum(kind: type[StrEnum]) -> None:
    numbers = {value.number for value in contract.ENUMS[kind.__name__].values}
    assert {wire.enum_number(member) for member in kind} == numbers - {0}
    assert {wire.enum_member(number, kind) for number in numbers - {0}} == set(kind)


def test_every_enum_has_a_str_enum() -> None:
    assert set(contract.ENUMS) == {kind.__name__ for kind in contract.STR_ENUMS}


@pytest.mark.parametrize("name", contract.ENUMS)
def test_zero_of_every_enum_means_unspecified(name: str) -> None:
    assert contract.ENUMS[name].values_by_number[0].name.endswith("_UNSPECIFIED")


def _real_oneofs(message: object) -> list[object]:
    """Without the ones that `optional` makes: they have a single field and a name of their own."""
    return [oneof for oneof in message.oneofs if not oneof.name.startswith("_")]  # type: ignore[attr-defined]


def _fits(kind: type, field: FieldDescriptor) -> bool:
    if field.enum_type is not None:
        return kind.__name__ == field.enum_type.name
    if kind is datetime:
        return field.message_type.full_name == "google.protobuf.Timestamp"
    if field.message_type is not None:
        return wire.message_class(kind).DESCRIPTOR is field.message_type
    return field.type in SCALARS[kind]
