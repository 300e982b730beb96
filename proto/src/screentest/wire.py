"""Records to protobuf messages and back, driven by the field names both sides share.

One message per record of the same name (``Attempt`` is ``AttemptView``). A record field that is a union of
records is the oneof of that name; a StrEnum member ``full-random`` is the enum value ``WEIGHTS_FULL_RANDOM``.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from screentest import records
from screentest.errors import BadRequest
from screentest.v1 import events_pb2, jobs_pb2, scheduler_pb2, vitals_pb2

R = TypeVar("R")
E = TypeVar("E", bound=StrEnum)

_MODULES = (jobs_pb2, events_pb2, vitals_pb2, scheduler_pb2)
_RENAMED = {"Attempt": "AttemptView"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Codec:
    """How one field crosses: ``encode`` gives what protobuf takes, ``decode`` the record's value."""

    name: str
    repeated: bool
    optional: bool
    is_message: bool
    choices: tuple[type, ...]  # records of a oneof; empty otherwise
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


def message_class(record_class: type) -> type[Message]:
    """The generated class of a record class; KeyError when the contract has none."""
    name = _RENAMED.get(record_class.__name__, record_class.__name__)
    for module in _MODULES:
        found = getattr(module, name, None)
        if found is not None:
            return typing.cast("type[Message]", found)
    raise KeyError(f"no message named {name} in the contract")


def to_wire(record: Any) -> Any:
    """The protobuf message of a record."""
    if isinstance(record, records.Parameter):
        return _parameter_to_wire(record)
    message = message_class(type(record))()
    for codec in _codecs(type(record)):  # type: ignore[arg-type]  # mypy: type[Any] is hashable
        value = getattr(record, codec.name)
        if value is None:
            continue
        if codec.choices:
            getattr(message, _snake(type(value).__name__)).CopyFrom(to_wire(value))
        elif codec.repeated:
            getattr(message, codec.name).extend([codec.encode(item) for item in value])
        elif codec.is_message:
            getattr(message, codec.name).CopyFrom(codec.encode(value))
        else:
            setattr(message, codec.name, codec.encode(value))
    return message


def from_wire(message: Any, record_class: type[R]) -> R:
    """The record of a protobuf message.

    Raises BadRequest when the message lacks what the record cannot be without: an enum or a oneof.
    """
    if record_class is records.Parameter:
        return typing.cast("R", _parameter_from_wire(message))
    values = {codec.name: _decode_field(message, codec, record_class) for codec in _codecs(record_class)}  # type: ignore[arg-type]
    return record_class(**values)


def encode(record: Any) -> bytes:
    """A record as protobuf bytes."""
    return typing.cast("bytes", to_wire(record).SerializeToString(deterministic=True))


def decode(payload: bytes, record_class: type[R]) -> R:
    """A record from protobuf bytes; BadRequest when they are not such a message."""
    message = message_class(record_class)()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise BadRequest(f"these bytes are no {record_class.__name__}: {error}") from error
    return from_wire(message, record_class)


def enum_member(number: int, kind: type[E]) -> E:
    """A StrEnum member from a message's enum field; BadRequest when it is not set or unknown here."""
    member = _enum_member(kind, number)
    if member is None:
        raise BadRequest(f"{_snake(kind.__name__)} is not set; give one of {', '.join(kind)}")
    return kind(member)


def enum_number(member: StrEnum) -> int:
    """The number of a StrEnum member in its message's enum."""
    return _enum_number(type(member), member)


def _decode_field(message: Any, codec: _Codec, record_class: type) -> Any:
    if codec.choices:
        chosen = message.WhichOneof(codec.name)
        by_name = {_snake(choice.__name__): choice for choice in codec.choices}
        if chosen is None:
            raise BadRequest(f"{record_class.__name__}.{codec.name} is empty; set one of {', '.join(by_name)}")
        return from_wire(getattr(message, chosen), by_name[chosen])
    raw = getattr(message, codec.name)
    if codec.repeated:
        return tuple(codec.decode(item) for item in raw)
    if codec.optional and message.DESCRIPTOR.fields_by_name[codec.name].has_presence:
        return codec.decode(raw) if message.HasField(codec.name) else None
    value = codec.decode(raw)
    if value is None and not codec.optional:
        raise BadRequest(f"{record_class.__name__}.{codec.name} is not set")
    return value


@functools.cache
def _codecs(record_class: type) -> tuple[_Codec, ...]:
    hints = typing.get_type_hints(record_class)
    return tuple(_codec(field.name, hints[field.name]) for field in dataclasses.fields(record_class))


def _codec(name: str, hint: Any) -> _Codec:
    arguments = typing.get_args(hint)
    is_union = isinstance(hint, types.UnionType)
    if typing.get_origin(hint) is tuple:
        encode_item, decode_item, is_message = _converters(arguments[0])
        return _Codec(name, True, False, is_message, (), encode_item, decode_item)
    members = tuple(item for item in arguments if item is not type(None)) if is_union else ()
    if len(members) > 1:
        return _Codec(name, False, False, True, members, to_wire, to_wire)
    inner = members[0] if members else hint
    encode_value, decode_value, is_message = _converters(inner)
    return _Codec(name, False, bool(members), is_message, (), encode_value, decode_value)


def _converters(kind: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any], bool]:
    """(record to wire, wire to record, whether the wire side is a message)."""
    if kind is datetime:
        return _timestamp, _datetime, True
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return functools.partial(_enum_number, kind), functools.partial(_enum_member, kind), False
    if dataclasses.is_dataclass(kind):
        return to_wire, lambda message: from_wire(message, typing.cast("type", kind)), True
    return _same, _same, False


def _same(value: Any) -> Any:
    return value


def _timestamp(value: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def _datetime(stamp: Timestamp) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"this is no time of the years 1 to 9999: {stamp.seconds} s, {stamp.nanos} ns") from error


@functools.cache
def _enum_numbers(kind: type[StrEnum]) -> dict[str, int]:
    """Member value to number. Source: the enum of the same name; zero is UNSPECIFIED."""
    descriptor = next(m.DESCRIPTOR.enum_types_by_name[kind.__name__] for m in _MODULES if hasattr(m, kind.__name__))
    prefix = _snake(kind.__name__).upper() + "_"
    by_name = {value.name: value.number for value in descriptor.values}
    return {member.value: by_name[prefix + member.value.upper().replace("-", "_")] for member in kind}


@functools.cache
def _enum_members(kind: type[StrEnum]) -> dict[int, StrEnum]:
    return {number: kind(value) for value, number in _enum_numbers(kind).items()}


def _enum_number(kind: type[StrEnum], member: StrEnum) -> int:
    return _enum_numbers(kind)[member.value]


def _enum_member(kind: type[StrEnum], number: int) -> StrEnum | None:
    """None for UNSPECIFIED; a number this version does not know is refused, never guessed."""
    if number == 0:
        return None
    member = _enum_members(kind).get(number)
    if member is None:
        raise BadRequest(f"{kind.__name__} has no value {number}; the other side is newer, update this one")
    return member


def _parameter_to_wire(parameter: records.Parameter) -> jobs_pb2.Parameter:
    message = jobs_pb2.Parameter(name=parameter.name)
    match parameter.value:
        case bool() as flag:  # before int: bool is an int
            message.flag = flag
        case int() as integer:
            message.integer = integer
        case float() as number:
            message.number = number
        case str() as text:
            message.text = text
        case tuple() as numbers:
            message.numbers.CopyFrom(jobs_pb2.DoubleList(items=numbers))
    return message


def _parameter_from_wire(message: jobs_pb2.Parameter) -> records.Parameter:
    chosen = message.WhichOneof("value")
    if chosen is None:
        raise BadRequest(f"Parameter {message.name!r} has no value")
    raw = getattr(message, chosen)
    return records.Parameter(name=message.name, value=tuple(raw.items) if chosen == "numbers" else raw)


@functools.cache
def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
