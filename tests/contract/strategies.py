"""Any value of any record class, as the contract allows it: built from type hints and the ranges of the messages."""

from __future__ import annotations

import dataclasses
import enum
import functools
import random
from collections.abc import Callable
from datetime import UTC, datetime

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from screentest import records, wire
from tests.contract import contract

BITS = {FieldDescriptor.TYPE_INT32: 31, FieldDescriptor.TYPE_INT64: 63}
INTEGERS = {kind: st.integers(-(2**bits), 2**bits - 1) for kind, bits in BITS.items()}
# Surrogates alone are no text: protobuf carries UTF-8.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# NaN equals nothing, itself included; it has a test of its own.
NUMBERS = st.floats(allow_nan=False)
# In UTC no hour comes twice: fold means nothing there and does not travel.
MOMENTS = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(fold=0))
PARAMETER_VALUES = st.one_of(
    st.booleans(),
    INTEGERS[FieldDescriptor.TYPE_INT64],
    NUMBERS,
    TEXTS,
    st.lists(NUMBERS, max_size=4).map(tuple),
)


@functools.cache
def any_record(record_class: type) -> st.SearchStrategy[object]:
    """Every field of the record, within what its message can hold; records inside it come from ``seeded``."""
    if record_class is records.Parameter:
        return st.builds(records.Parameter, name=TEXTS, value=PARAMETER_VALUES)
    made: dict[str, st.SearchStrategy[object]] = {}
    for name, kinds, field, is_many, is_optional in _fields(record_class):
        choices = [_any_value(kind, field) for kind in kinds]
        if is_many:
            made[name] = st.lists(choices[0], max_size=2).map(tuple)
        else:
            made[name] = st.one_of(*([st.none()] if is_optional else []), *choices)
    return st.builds(record_class, **made)


def _any_value(kind: type, field: FieldDescriptor | None) -> st.SearchStrategy[object]:
    if dataclasses.is_dataclass(kind):
        # Drawing hundreds of nested fields one by one takes hypothesis seconds; each class has its own turn anyway.
        return st.integers(0, 2**16).map(lambda seed: seeded(kind, random.Random(seed)))
    if issubclass(kind, enum.StrEnum):
        return st.sampled_from(list(kind))
    if kind is int:
        assert field is not None
        return INTEGERS[field.type]
    return {bool: st.booleans(), float: NUMBERS, str: TEXTS, datetime: MOMENTS}[kind]


def seeded(record_class: type, chance: random.Random) -> object:
    """One record with every nested field, the same for the same seed."""
    if record_class is records.Parameter:
        values = (True, False, 0, -(2**63), 0.5, -0.0, "", "a prompt", (), (1000.0, 0.03))
        return records.Parameter(name=_word(chance), value=chance.choice(values))
    values = {}
    for name, kinds, field, is_many, is_optional in _fields(record_class):
        if is_many:
            values[name] = tuple(_seeded_value(kinds[0], field, chance) for _ in range(chance.randrange(3)))
        elif is_optional and chance.random() < 0.3:
            values[name] = None
        else:
            values[name] = _seeded_value(chance.choice(kinds), field, chance)
    return record_class(**values)


def _seeded_value(kind: type, field: FieldDescriptor | None, chance: random.Random) -> object:
    if dataclasses.is_dataclass(kind):
        return seeded(kind, chance)
    if issubclass(kind, enum.StrEnum):
        return chance.choice(list(kind))
    if kind is int:
        assert field is not None
        limit = 2 ** BITS[field.type]
        return chance.choice((0, 1, -1, limit - 1, -limit, chance.randrange(-limit, limit)))
    if kind is datetime:
        return datetime.fromtimestamp(chance.randrange(2**31), UTC).replace(microsecond=chance.randrange(10**6))
    makers: dict[type, Callable[[], object]] = {
        bool: lambda: chance.random() < 0.5,
        float: lambda: chance.choice((0.0, -0.0, 1e308, float("inf"), chance.uniform(-1e6, 1e6))),
        str: lambda: _word(chance),
    }
    return makers[kind]()


def _word(chance: random.Random) -> str:
    return "".join(chance.choices("aä静🎬 -\n\0", k=chance.randrange(6)))


@functools.cache
def _fields(record_class: type) -> tuple[tuple[str, tuple[type, ...], FieldDescriptor | None, bool, bool], ...]:
    """(name, possible types, field of the message or None for a oneof, whether it repeats, whether it may be None)."""
    message: Descriptor = wire.message_class(record_class).DESCRIPTOR
    found = []
    for name, hint in contract.hints(record_class).items():
        item = contract.item_of(hint)
        field = message.fields_by_name.get(name)
        found.append((name, contract.members(item or hint), field, item is not None, contract.is_optional(hint)))
    return tuple(found)
