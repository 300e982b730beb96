"""Any gRPC client can drive Screentest: this one knows nothing but the address, the token and server reflection."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.played import TOKEN, HandWorker, Scheduler

SERVICE = "screentest.v1.Scheduler"


class ReflectingClient:
    """What grpcurl does: learns the messages from the server."""

    def __init__(self, address: str) -> None:
        self._metadata = (("authorization", f"Bearer {TOKEN}"),)
        self._channel = grpc.insecure_channel(address)
        database = ProtoReflectionDescriptorDatabase(_Authorized(self._channel, self._metadata))
        pool = descriptor_pool.DescriptorPool(database)
        self.services = database.get_services()
        self._methods = {method.name: method for method in pool.FindServiceByName(SERVICE).methods}

    def message(self, method: str, **fields: Any) -> Any:
        return message_factory.GetMessageClass(self._methods[method].input_type)(**fields)

    def call(self, method: str, **fields: Any) -> Any:
        return self._callable(self._channel.unary_unary, method)(
            self.message(method, **fields), timeout=20, metadata=self._metadata
        )

    def stream(self, method: str, **fields: Any) -> Any:
        return self._callable(self._channel.unary_stream, method)(
            self.message(method, **fields), timeout=30, metadata=self._metadata
        )

    def _callable(self, kind: Any, method: str) -> Any:
        answer = message_factory.GetMessageClass(self._methods[method].output_type)
        return kind(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )


class _Authorized:
    """A channel that sends the token with every call: the reflection stub knows none."""

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata

    def __getattr__(self, kind: str) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            call = getattr(self._channel, kind)(*args, **kwargs)
            return lambda request, **options: call(request, metadata=self._metadata, **options)

        return make


async def test_a_foreign_client_submits_and_watches(scheduler: Scheduler, worker: HandWorker) -> None:
    client = await asyncio.to_thread(ReflectingClient, scheduler.address)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(client.services)

    request = {"title": "foreign", "prompts": ["a door"], "lane_ids": ["stub"], "seeds": [7], "weights": 2}
    accepted = await asyncio.to_thread(client.call, "SubmitSweep", request_id="f-1", spec=request)
    sweep_id = accepted.sweep.record.sweep_id

    def watch() -> list[str]:
        seen = []
        for said in client.stream("WatchSweep", sweep_id=sweep_id):
            if said.WhichOneof("body") == "job_event":
                seen.append(said.job_event.WhichOneof("body"))
                if seen[-1] == "completed":
                    return seen
        raise AssertionError("the watch ended early")

    watching = asyncio.create_task(asyncio.to_thread(watch))
    taken = await worker.take()
    assert taken is not None
    delivery, dispatch = taken
    sequence = await worker.begin(dispatch)
    await worker.finish(dispatch, sequence, await worker.upload(dispatch))
    await delivery.ack()
    assert await watching == ["submitted", "admitted", "started", "attempt_ended", "completed"]


async def test_without_the_token_nothing_is_told(scheduler: Scheduler) -> None:
    with grpc.insecure_channel(scheduler.address) as channel:
        list_sweeps = channel.unary_unary(f"/{SERVICE}/ListSweeps")
        try:
            list_sweeps(b"", timeout=10)
            raise AssertionError("answered without a token")
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
