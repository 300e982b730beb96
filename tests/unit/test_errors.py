"""Every error a caller can act on crosses gRPC and comes back as itself."""

from __future__ import annotations

import grpc
import pytest

from screentest import errors
from screentest.errors import BadRequest, Conflict, FieldViolation, ScreentestError, from_grpc_code, grpc_code

KINDS = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, ScreentestError)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not ScreentestError])
def test_an_error_comes_back_as_the_class_it_was(kind: type[ScreentestError]) -> None:
    error = from_grpc_code(grpc_code(kind("say what to do")), "say what to do")
    assert type(error) is kind
    assert str(error) == "say what to do"


def test_the_table_has_a_code_for_every_class_and_no_code_twice() -> None:
    codes = [code for _, code in errors.GRPC_CODES]
    assert len(set(codes)) == len(codes) == len(KINDS) - 1


def test_every_code_of_the_table_is_one_of_grpc() -> None:
    assert {code for _, code in errors.GRPC_CODES} <= set(grpc.StatusCode.__members__)


def test_a_class_without_a_code_is_internal() -> None:
    assert grpc_code(ScreentestError("a defect")) == "INTERNAL"


def test_a_subclass_has_the_code_of_the_class_it_refines() -> None:
    class WrongLastSequence(Conflict):
        pass

    assert grpc_code(WrongLastSequence("somebody else wrote first")) == "ABORTED"


def test_bad_request_keeps_its_field_violations() -> None:
    violations = (FieldViolation(field="spec.seeds", description="give one"),)
    error = from_grpc_code("INVALID_ARGUMENT", "give one", violations)
    assert isinstance(error, BadRequest)
    assert error.violations == violations


@pytest.mark.parametrize("code", ["DEADLINE_EXCEEDED", "CANCELLED", "UNAVAILABLE"])
def test_no_answer_in_time_is_unavailable(code: str) -> None:
    assert type(from_grpc_code(code, "no answer")) is errors.Unavailable


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "DATA_LOSS"])
def test_a_code_without_a_class_is_still_an_error_to_show(code: str) -> None:
    assert type(from_grpc_code(code, "a defect")) is ScreentestError
