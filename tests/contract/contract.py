"""What the contract consists of, found by looking: every record class, every message, every enum."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from screentest import records
from screentest.v1 import events_pb2, jobs_pb2, scheduler_pb2, vitals_pb2

FILES = tuple(module.DESCRIPTOR for module in (jobs_pb2, events_pb2, vitals_pb2, scheduler_pb2))

MESSAGES: dict[str, Descriptor] = {name: item for file in FILES for name, item in file.message_types_by_name.items()}
ENUMS: dict[str, EnumDescriptor] = {name: item for file in FILES for name, item in file.enum_types_by_name.items()}

_OWN = [item for item in vars(records).values() if getattr(item, "__module__", "") == records.__name__]
RECORDS: tuple[type, ...] = tuple(item for item in _OWN if isinstance(item, type) and dataclasses.is_dataclass(item))
STR_ENUMS: tuple[type[enum.StrEnum], ...] = tuple(
    item for item in _OWN if isinstance(item, type) and issubclass(item, enum.StrEnum)
)


def is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def hints(record_class: type) -> dict[str, typing.Any]:
    return typing.get_type_hints(record_class)


def members(hint: object) -> tuple[type, ...]:
    """The types of a union but None; a hint that is no union is its only member."""
    if not isinstance(hint, types.UnionType):
        return (typing.cast("type", hint),)
    return tuple(item for item in typing.get_args(hint) if item is not type(None))


def is_optional(hint: object) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def item_of(hint: object) -> object | None:
    """``X`` of ``tuple[X, ...]``, None for anything else."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
