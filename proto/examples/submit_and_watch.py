"""Submits a sweep and shows it until it has ended. A second start with the same request id submits nothing again.

    SCREENTEST_GRPC_ADDRESS=127.0.0.1:50051 SCREENTEST_GRPC_TOKEN_FILE=.state/secrets/grpc.token \
        python submit_and_watch.py my-first "a disc moves" stub
"""

from __future__ import annotations

import sys

from screentest.client import Client
from screentest.errors import BadRequest
from screentest.records import JobEvent, Progress, SweepEvent, SweepSettled, SweepSpec, Weights


def main(request_id: str, prompt: str, *lane_ids: str) -> None:
    spec = SweepSpec(title=request_id, prompts=(prompt,), lane_ids=lane_ids, seeds=(1, 2), weights=Weights.MINIATURE)
    with Client.from_environment() as client:
        try:
            accepted = client.submit_sweep(spec, request_id=request_id)
        except BadRequest as refused:
            # One line per field that cannot be used.
            sys.exit("\n".join(f"{item.field}: {item.description}" for item in refused.violations) or str(refused))
        sweep_id = accepted.sweep.record.sweep_id
        print(f"{sweep_id} {'is new' if accepted.created else 'was submitted before'}")
        show_until_settled(client, sweep_id)


def show_until_settled(client: Client, sweep_id: str) -> None:
    """The watch itself survives lost connections and restarts of the scheduler; it begins with the first event."""
    for message in client.watch(sweep_id):
        match message.body:
            case JobEvent() as event:
                print(f"{event.job_id}: {event.state.value}")
            case Progress(job_id=job_id, phase=phase, step=step, steps=steps) if step:
                print(f"{job_id}: {phase} {step}/{steps}")
            case SweepEvent(body=SweepSettled(jobs=jobs, clips=clips)):
                print(f"settled: {clips} of {jobs} jobs have a clip")
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
