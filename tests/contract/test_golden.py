"""Bytes written by yesterday's version stay readable and mean the same."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from screentest import wire
from screentest.records import ControlEvent, JobEvent, SweepEvent
from tests.contract import contract, examples, golden_messages

REGENERATE = "if the contract was meant to change: python -m tests.contract.golden_messages"


def test_every_example_has_its_golden_file_and_no_file_is_left_over() -> None:
    assert golden_messages.names() == set(examples.MESSAGES), REGENERATE


@pytest.mark.parametrize("name", examples.MESSAGES)
def test_golden_bytes_decode_to_the_record_they_were_made_of(name: str) -> None:
    record = examples.MESSAGES[name]
    _, payload = golden_messages.read(name)
    assert wire.decode(payload, type(record)) == record, REGENERATE


@pytest.mark.parametrize("name", examples.MESSAGES)
def test_the_record_still_encodes_to_its_golden_bytes(name: str) -> None:
    _, payload = golden_messages.read(name)
    assert wire.encode(examples.MESSAGES[name]).hex() == payload.hex(), REGENERATE


@pytest.mark.parametrize("name", examples.MESSAGES)
def test_the_text_form_says_what_the_bytes_say(name: str) -> None:
    text, payload = golden_messages.read(name)
    message = wire.message_class(type(examples.MESSAGES[name]))()
    text_format.Parse(text, message)
    assert message.SerializeToString(deterministic=True) == payload, REGENERATE


@pytest.mark.parametrize("record_class", [JobEvent, SweepEvent, ControlEvent])
def test_every_body_of_an_event_has_an_example(record_class: type) -> None:
    bodies = {type(record.body) for record in examples.MESSAGES.values() if isinstance(record, record_class)}
    assert bodies == set(contract.members(typing.get_type_hints(record_class)["body"]))


def test_every_field_of_a_stored_message_is_set_in_some_golden_file() -> None:
    """A field that no example sets could change its number unseen."""
    filled: set[tuple[str, str]] = set()
    reachable: dict[str, Descriptor] = {}
    for record in examples.MESSAGES.values():
        message = wire.to_wire(record)
        filled |= set(_filled(message))
        _reach(message.DESCRIPTOR, reachable)
    declared = {(item.full_name, field.name) for item in reachable.values() for field in item.fields}
    assert declared - filled == set()


def _filled(message: Message) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields():
        yield message.DESCRIPTOR.full_name, field.name
        if field.message_type is not None:
            for item in value if contract.is_repeated(field) else (value,):
                yield from _filled(item)


def _reach(message: Descriptor, reachable: dict[str, Descriptor]) -> None:
    if message.full_name in reachable or message.file.package == "google.protobuf":
        return
    reachable[message.full_name] = message
    for field in message.fields:
        if field.message_type is not None:
            _reach(field.message_type, reachable)
