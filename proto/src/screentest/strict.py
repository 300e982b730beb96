"""Reads tables of TOML or JSON into dataclasses, strictly: an unknown key or a wrong type is a BadRequest that says
where it stands and what is legal.

The key of a field is its name, or its metadata `key` (`class` cannot be a Python name); `key` None = not in the file.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from screentest.errors import BadRequest


def require(holds: bool, source: str, where: str, rule: str) -> None:
    if not holds:
        raise BadRequest(f"{source}: {where}: {rule}")


def unknown_key(source: str, where: str, key: str, legal: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(key, legal, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"legal are {', '.join(legal)}"
    return f"{source}: unknown key {_join(where, key)!r}; {hint}"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _toml_key(part: Field[Any]) -> str | None:
    """The key of a field in the file (`class` cannot be a Python name); None for a field that is not in the file."""
    return cast("str | None", part.metadata.get("key", part.name))


def read_table(kind: type, table: Any, source: str, where: str, given: Mapping[str, Any] | None = None) -> Any:
    """A dataclass from a table, every key known and every value typed."""
    if not isinstance(table, dict):
        raise BadRequest(f"{source}: {where}: wants a table, got {table!r}")
    hints = get_type_hints(kind)
    parts = {key: part for part in fields(kind) if (key := _toml_key(part)) is not None}
    for key in table:
        if key not in parts:
            raise BadRequest(unknown_key(source, where, key, tuple(parts)))
    values: dict[str, Any] = dict(given or {})
    for key, part in parts.items():
        if key in table:
            values[part.name] = _read(table[key], hints[part.name], source, _join(where, key))
        elif part.default is MISSING and part.default_factory is MISSING:
            raise BadRequest(f"{source}: {_join(where, key)!r} is missing")
    return kind(**values)


def _read(value: Any, hint: Any, source: str, where: str) -> Any:
    """The value as its field wants it. TOML has no null, so None never occurs in a file."""
    hint = _without_none(hint)
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return read_table(hint, value, source, where)
    if origin is tuple:
        require(isinstance(value, list), source, where, f"wants a list, got {value!r}")
        return tuple(_read(item, args[0], source, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is Mapping:
        require(isinstance(value, dict), source, where, f"wants a table, got {value!r}")
        return {key: _read(item, args[1], source, _join(where, key)) for key, item in value.items()}
    return _read_scalar(value, hint, source, where)


def _read_scalar(value: Any, hint: Any, source: str, where: str) -> Any:
    legal = _scalars(hint)
    choices = tuple(choice for choice in legal if isinstance(choice, str))
    if choices:
        require(value in choices, source, where, f"{value!r} is none of {', '.join(choices)}")
        return value
    require(type(value) in legal, source, where, f"wants {_type_names(legal)}, got {value!r}")
    return value


def _without_none(hint: Any) -> Any:
    """`X` of `X | None`; a union of several types stays as it is."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else hint


def _scalars(hint: Any) -> tuple[Any, ...]:
    """The legal types, or the legal words of a Literal, of a scalar field."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for kind in get_args(hint) if kind is not type(None))
    return get_args(hint) if get_origin(hint) is Literal else (hint,)


def _type_names(kinds: tuple[Any, ...]) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return " or ".join(names[kind] for kind in kinds)
