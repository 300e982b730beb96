"""The typed client against a real gRPC server: errors, paging and a watch that survives a restart."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from screentest.client import Client, nobody_answers
from screentest.errors import AlreadyExists, BadRequest, NotFound, Unauthenticated, Unavailable
from screentest.records import ArtifactKind, Stamp, SweepSpec, Weights
from screentest.v1 import scheduler_pb2, scheduler_pb2_grpc
from screentest.wire import to_wire
from screentest_ui import ports

SPEC = SweepSpec(title="t", prompts=("p",), lane_ids=("stub",), seeds=(1,), weights=Weights.MINIATURE)
STAMP = to_wire(Stamp(at=datetime(2026, 5, 8, tzinfo=UTC), boot_id="b", boottime_ns=1))


class Servicer(scheduler_pb2_grpc.SchedulerServicer):
    """Answers just what each test needs; remembers the cursors and tokens it was asked with."""

    def __init__(self) -> None:
        self.cursors: list[str] = []
        self.tokens: list[str] = []
        self.last_event = 3

    def SubmitSweep(self, request, context):
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field="spec.lane_ids[0]", description="lane 'stub' is unknown")
        detail = AnyMessage()
        detail.Pack(bad)
        status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="one field is wrong", details=[detail])
        context.abort_with_status(rpc_status.to_status(status))

    def GetJob(self, request, context):
        context.abort(getattr(grpc.StatusCode, request.job_id), f"it is {request.job_id}")

    def ListLanes(self, request, context):
        return scheduler_pb2.ListLanesResponse()

    def GetArtifact(self, request, context):
        assert request.WhichOneof("of") == "job_id"
        artifact = scheduler_pb2.GetArtifactResponse(url="http://x/y")
        artifact.artifact.kind = request.kind
        artifact.artifact.key = request.job_id
        return artifact

    def WatchSweep(self, request, context) -> Iterator[scheduler_pb2.WatchSweepResponse]:
        self.cursors.append(request.cursor)
        start = int(request.cursor.partition(":")[2] or 0)
        for sequence in range(start + 1, self.last_event + 1):
            reply = scheduler_pb2.WatchSweepResponse(cursor=f"e:{sequence}")
            reply.heartbeat.stamp.CopyFrom(STAMP)
            yield reply
        if self.last_event < 6:
            self.last_event = 6
            context.abort(grpc.StatusCode.UNAVAILABLE, "the scheduler stops")


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def address(servicer: Servicer) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_field_violations_reach_the_caller(servicer: Servicer, address: str) -> None:
    with Client.connect(address, token="t0ken") as client, pytest.raises(BadRequest, match="one field") as refused:
        client.submit_sweep(SPEC, request_id="r")
    assert refused.value.violations[0].field == "spec.lane_ids[0]"
    assert servicer.tokens == ["Bearer t0ken"]


@pytest.mark.parametrize(
    ("code", "kind"), [("NOT_FOUND", NotFound), ("ALREADY_EXISTS", AlreadyExists), ("UNAUTHENTICATED", Unauthenticated)]
)
def test_status_becomes_the_error_of_the_contract(address: str, code: str, kind: type[Exception]) -> None:
    with Client.connect(address) as client, pytest.raises(kind, match=f"it is {code}"):
        client.get_job(code)


def test_nobody_there_says_how_to_start_it() -> None:
    address = f"127.0.0.1:{ports.choose(1)[0]}"
    with (
        Client.connect(address) as client,
        pytest.raises(Unavailable, match=rf"{address}; start it with `screentest up`"),
    ):
        client.list_lanes()


@pytest.mark.parametrize("address", ["gpu-host.lan:50051", "192.0.2.7:50051"])
def test_nobody_at_another_machine_is_not_started_from_here(address: str) -> None:
    said = nobody_answers(address)
    assert address in said
    assert "SCREENTEST_GRPC_ADDRESS" in said
    assert "screentest up" not in said


def test_watch_goes_on_behind_its_cursor_after_an_interruption(servicer: Servicer, address: str) -> None:
    heard: list[Unavailable] = []
    with Client.connect(address) as client:
        cursors = [message.cursor for message in client.watch("s", on_interruption=heard.append)]
    assert cursors == [f"e:{n}" for n in range(1, 7)]
    assert servicer.cursors == ["", "e:3"]
    assert "the scheduler stops" in str(heard[0])


def test_watch_gives_up_when_asked_to() -> None:
    with Client.connect(f"127.0.0.1:{ports.choose(1)[0]}") as client, pytest.raises(Unavailable):
        list(client.watch("s", give_up_after_s=0.1))


def test_artifact_is_of_a_job_or_of_a_sweep(address: str) -> None:
    with Client.connect(address) as client:
        assert client.get_artifact(kind=ArtifactKind.CLIP, job_id="j").artifact.key == "j"
        with pytest.raises(BadRequest, match="either a job"):
            client.get_artifact(kind=ArtifactKind.CLIP)
