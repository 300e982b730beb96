"""A change that would break a client of the last release is told; one that only adds is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

BREAKING = Path(__file__).parents[2] / "proto" / "breaking.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("breaking", BREAKING)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


breaking = load()


@pytest.fixture(scope="module")
def contract() -> FileDescriptorSet:
    return breaking.described()


def changed(contract: FileDescriptorSet, change: Callable[[FileDescriptorProto], None]) -> list[str]:
    """What is said of the contract with ``change`` applied to scheduler.proto."""
    new = FileDescriptorSet.FromString(contract.SerializeToString())
    change(next(file for file in new.file if file.name.endswith("scheduler.proto")))
    return list(breaking.breaks(contract, new))


def message(file: FileDescriptorProto, name: str) -> DescriptorProto:
    return next(item for item in file.message_type if item.name == name)


def field(file: FileDescriptorProto, owner: str, name: str) -> FieldDescriptorProto:
    return next(item for item in message(file, owner).field if item.name == name)


def test_the_contract_breaks_no_client_of_the_last_release(contract: FileDescriptorSet) -> None:
    released = FileDescriptorSet.FromString(breaking.RELEASED.read_bytes())
    assert breaking.breaks(released, contract) == []
    messages, enums = breaking.types_of(released)
    assert "screentest.v1.JobSpec" in messages
    assert "screentest.v1.JobState" in enums


def test_a_removed_field_is_told(contract: FileDescriptorSet) -> None:
    def remove(file: FileDescriptorProto) -> None:
        message(file, "GetJobRequest").ClearField("field")

    assert changed(contract, remove) == ["field screentest.v1.GetJobRequest.job_id = 1 is gone"]


def test_a_renumbered_field_is_told(contract: FileDescriptorSet) -> None:
    def renumber(file: FileDescriptorProto) -> None:
        field(file, "GetJobRequest", "job_id").number = 7

    assert changed(contract, renumber) == ["field screentest.v1.GetJobRequest.job_id = 1 has become 7"]


def test_a_renamed_field_is_told(contract: FileDescriptorSet) -> None:
    def rename(file: FileDescriptorProto) -> None:
        field(file, "GetJobRequest", "job_id").name = "id"

    assert changed(contract, rename) == ["field screentest.v1.GetJobRequest.job_id = 1 is called id now"]


def test_a_retyped_field_is_told(contract: FileDescriptorSet) -> None:
    def retype(file: FileDescriptorProto) -> None:
        field(file, "GetJobRequest", "job_id").type = FieldDescriptorProto.TYPE_INT64

    assert changed(contract, retype) == [
        "field screentest.v1.GetJobRequest.job_id = 1: its type was string and is int64"
    ]


def test_a_message_type_that_is_another_one_is_told(contract: FileDescriptorSet) -> None:
    def retype(file: FileDescriptorProto) -> None:
        field(file, "CancelJobResponse", "job").type_name = ".screentest.v1.Sweep"

    [line] = changed(contract, retype)
    assert line.endswith("its type was screentest.v1.Job and is screentest.v1.Sweep")


def test_absence_that_can_no_longer_be_told_is_told(contract: FileDescriptorSet) -> None:
    def plain(file: FileDescriptorProto) -> None:
        field(file, "Job", "expected_wait_s").proto3_optional = False
        field(file, "Job", "expected_wait_s").ClearField("oneof_index")

    [line] = changed(contract, plain)
    assert line.endswith("its label was optional and is plain")


def test_absence_of_a_message_could_always_be_told(contract: FileDescriptorSet) -> None:
    def mark(file: FileDescriptorProto) -> None:
        field(file, "CancelJobResponse", "job").proto3_optional = True

    assert changed(contract, mark) == []


def test_a_single_field_that_became_many_is_told(contract: FileDescriptorSet) -> None:
    def repeat(file: FileDescriptorProto) -> None:
        field(file, "GetJobRequest", "job_id").label = FieldDescriptorProto.LABEL_REPEATED

    [line] = changed(contract, repeat)
    assert line.endswith("its label was plain and is repeated")


def test_a_field_that_left_its_oneof_is_told(contract: FileDescriptorSet) -> None:
    def leave(file: FileDescriptorProto) -> None:
        field(file, "GetArtifactRequest", "job_id").ClearField("oneof_index")

    [line] = changed(contract, leave)
    assert line.endswith("its oneof was of and is none")


def test_a_removed_message_and_its_call_are_told(contract: FileDescriptorSet) -> None:
    def remove(file: FileDescriptorProto) -> None:
        file.message_type.remove(message(file, "DrainRequest"))
        [service] = file.service
        service.method.remove(next(item for item in service.method if item.name == "Drain"))

    assert changed(contract, remove) == [
        "message screentest.v1.DrainRequest is gone",
        "call screentest.v1.Scheduler.Drain is gone",
    ]


def test_a_call_that_streams_now_is_told(contract: FileDescriptorSet) -> None:
    def stream(file: FileDescriptorProto) -> None:
        [service] = file.service
        next(item for item in service.method if item.name == "GetJob").server_streaming = True

    [line] = changed(contract, stream)
    assert line.endswith("-> screentest.v1.Job and is screentest.v1.GetJobRequest -> stream screentest.v1.Job")


def test_a_renumbered_enum_value_is_told(contract: FileDescriptorSet) -> None:
    new = FileDescriptorSet.FromString(contract.SerializeToString())
    enum = next(item for file in new.file for item in file.enum_type if item.name == "JobState")
    first, last = enum.value[1], enum.value[-1]
    first.number = 99
    removed = last.name
    enum.value.remove(last)
    said = breaking.breaks(contract, new)
    assert f"value screentest.v1.JobState.{first.name} = 1 has become 99" in said
    assert any(f".{removed} = " in line and line.endswith("is gone") for line in said)


def test_what_is_added_breaks_nobody(contract: FileDescriptorSet) -> None:
    def add(file: FileDescriptorProto) -> None:
        new = message(file, "GetJobRequest").field.add()
        new.name, new.number, new.type = "with_log", 2, FieldDescriptorProto.TYPE_BOOL
        new.label = FieldDescriptorProto.LABEL_OPTIONAL
        file.message_type.add().name = "New"
        file.service[0].method.add().name = "New"

    assert changed(contract, add) == []


def test_a_message_may_move_to_another_file(contract: FileDescriptorSet) -> None:
    new = FileDescriptorSet.FromString(contract.SerializeToString())
    scheduler = next(file for file in new.file if file.name.endswith("scheduler.proto"))
    jobs = next(file for file in new.file if file.name.endswith("jobs.proto"))
    moved = message(scheduler, "DrainRequest")
    jobs.message_type.add().CopyFrom(moved)
    scheduler.message_type.remove(moved)
    assert breaking.breaks(contract, new) == []
