"""What docs/clients.md shows is what the contract takes."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from google.protobuf import json_format, message_factory

from screentest.v1 import scheduler_pb2

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
SERVICE = scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"]
# grpcurl's flags, the JSON of a request, where, and which call.
CALLS = re.findall(r"^grpcurl .*?(?:-d '([^']*)' )?\S+ screentest\.v1\.Scheduler/(\w+)$", PAGE, re.MULTILINE)


def test_the_recipes_are_found() -> None:
    assert [call for _, call in CALLS] == ["SubmitSweep", "WatchSweep", "ListSweeps"]


@pytest.mark.parametrize(("request_json", "call"), CALLS)
def test_each_grpcurl_request_is_one_that_its_call_takes(request_json: str, call: str) -> None:
    message = message_factory.GetMessageClass(SERVICE.methods_by_name[call].input_type)()
    json_format.Parse(request_json or "{}", message)  # raises for a field or enum value that there is not
    assert bool(message.ByteSize()) is bool(request_json)


def test_every_linked_file_and_named_setting_is_there() -> None:
    for link in re.findall(r"\]\((\.\./[^)]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
    client = (ROOT / "proto/src/screentest/client.py").read_text()
    for setting in re.findall(r"^\| `(SCREENTEST_\w+)`", PAGE, re.MULTILINE):
        assert setting in client or setting.removeprefix("SCREENTEST_GRPC_").removesuffix("_FILE") in client


def test_the_client_needs_nothing_but_grpc_and_protobuf() -> None:
    """So that a program that only submits and watches installs no broker, no depot and no web server."""
    needed = importlib.metadata.requires("screentest") or []
    always = {re.split(r"[^a-zA-Z0-9-]", line)[0] for line in needed if "extra ==" not in line}
    assert always == {"grpcio", "protobuf", "googleapis-common-protos", "grpcio-status"}
