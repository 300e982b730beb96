"""What of the contract a client of the last release could no longer rely on.

`make check` compares the .proto files with ``released.binpb``, the descriptors of the last release; adding is fine,
removing, renumbering, renaming and retyping is not. `make proto-release` writes that file anew, and nothing else does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc_tools
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
RELEASED = ROOT / "released.binpb"

Messages = dict[str, DescriptorProto]
Enums = dict[str, EnumDescriptorProto]


def described() -> FileDescriptorSet:
    """The .proto files as they are now, without those of others that they import."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "screentest" / "v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        status = protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", f"--descriptor_set_out={out}", *sources])
        if status:
            raise SystemExit(int(status))
        return FileDescriptorSet.FromString(out.read_bytes())


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """One line for everything in ``old`` that ``new`` lacks or means otherwise."""
    old_messages, old_enums = types_of(old)
    new_messages, new_enums = types_of(new)
    return [
        *_gone("message", old_messages, new_messages),
        *_gone("enum", old_enums, new_enums),
        *(line for name in _both(old_messages, new_messages) for line in _fields(name, old_messages, new_messages)),
        *(line for name in _both(old_enums, new_enums) for line in _values(name, old_enums, new_enums)),
        *_services(old, new),
    ]


def types_of(files: FileDescriptorSet) -> tuple[Messages, Enums]:
    """Messages and enums by full name, nested ones too; in which file one stands is nobody's business."""
    messages: Messages = {}
    enums: Enums = {}

    def walk(prefix: str, inside: Any) -> None:
        for enum in inside.enum_type:
            enums[f"{prefix}.{enum.name}"] = enum
        for message in inside.nested_type if isinstance(inside, DescriptorProto) else inside.message_type:
            messages[f"{prefix}.{message.name}"] = message
            walk(f"{prefix}.{message.name}", message)

    for file in files.file:
        walk(file.package, file)
    return messages, enums


def _both(old: Iterable[str], new: Iterable[str]) -> list[str]:
    return [name for name in old if name in set(new)]


def _gone(kind: str, old: Iterable[str], new: Iterable[str]) -> Iterator[str]:
    left = set(new)
    yield from (f"{kind} {name} is gone" for name in old if name not in left)


# ---- fields


def _fields(name: str, old_messages: Messages, new_messages: Messages) -> Iterator[str]:
    old, new = old_messages[name], new_messages[name]
    by_number = {field.number: field for field in new.field}
    by_name = {field.name: field for field in new.field}
    for field in old.field:
        what = f"field {name}.{field.name} = {field.number}"
        now = by_number.get(field.number)
        if field.name in by_name and by_name[field.name].number != field.number:
            yield f"{what} has become {by_name[field.name].number}"
        elif now is None:
            yield f"{what} is gone"
        elif now.name != field.name:
            yield f"{what} is called {now.name} now"
        else:
            yield from _changes(what, (field, old), (now, new))


def _changes(
    what: str, old: tuple[FieldDescriptorProto, DescriptorProto], new: tuple[FieldDescriptorProto, DescriptorProto]
) -> Iterator[str]:
    for aspect, read in (("type", _type), ("label", _label), ("oneof", _oneof)):
        before, after = read(*old), read(*new)
        if before != after:
            yield f"{what}: its {aspect} was {before} and is {after}"


def _type(field: FieldDescriptorProto, _: DescriptorProto) -> str:
    return field.type_name.lstrip(".") or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _label(field: FieldDescriptorProto, _: DescriptorProto) -> str:
    """Whether absent can be told from zero is part of what a field means; of a message it always can."""
    if field.proto3_optional and field.type != FieldDescriptorProto.TYPE_MESSAGE:
        return "optional"
    return "repeated" if field.label == FieldDescriptorProto.LABEL_REPEATED else "plain"


def _oneof(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    if field.proto3_optional or not field.HasField("oneof_index"):
        return "none"
    return str(message.oneof_decl[field.oneof_index].name)


# ---- enums and services


def _values(name: str, old_enums: Enums, new_enums: Enums) -> Iterator[str]:
    numbers = {value.name: value.number for value in new_enums[name].value}
    for value in old_enums[name].value:
        what = f"value {name}.{value.name} = {value.number}"
        if value.name not in numbers:
            yield f"{what} is gone"
        elif numbers[value.name] != value.number:
            yield f"{what} has become {numbers[value.name]}"


def _services(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    left = _services_of(new)
    for name, service in _services_of(old).items():
        if name not in left:
            yield f"service {name} is gone"
            continue
        methods = {method.name: method for method in left[name].method}
        for method in service.method:
            what = f"call {name}.{method.name}"
            if method.name not in methods:
                yield f"{what} is gone"
            elif _signature(method) != _signature(methods[method.name]):
                yield f"{what} was {_signature(method)} and is {_signature(methods[method.name])}"


def _services_of(files: FileDescriptorSet) -> dict[str, ServiceDescriptorProto]:
    return {f"{file.package}.{service.name}": service for file in files.file for service in file.service}


def _signature(method: Any) -> str:
    def side(name: str, streams: bool) -> str:
        return f"{'stream ' if streams else ''}{name.lstrip('.')}"

    return f"{side(method.input_type, method.client_streaming)} -> {side(method.output_type, method.server_streaming)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", action="store_true", help="make what there is now the released contract")
    asked, now = parser.parse_args(), described()
    old = FileDescriptorSet.FromString(RELEASED.read_bytes()) if RELEASED.exists() else FileDescriptorSet()
    found = breaks(old, now)
    out = sys.stdout if asked.release else sys.stderr
    out.writelines(f"{line}\n" for line in found)
    if asked.release:
        RELEASED.write_bytes(now.SerializeToString(deterministic=True))
        sys.stdout.write(f"{RELEASED.name} is the contract of today; {len(found)} breaking changes, listed above\n")
        return 0
    if found:
        sys.stderr.write("clients of the last release would break; keep what is listed, and add beside it\n")
        return 1
    sys.stdout.write("the contract breaks no client of the last release\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
