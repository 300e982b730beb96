"""Fetches every clip of a sweep, each checked by its sha256; what is there already is not fetched again.

python fetch_clips.py <sweep id> clips
"""

from __future__ import annotations

import sys
from pathlib import Path

from screentest.client import Client
from screentest.records import ArtifactKind, JobState


def main(sweep_id: str, folder: str) -> None:
    with Client.from_environment() as client:
        for job in client.list_jobs(sweep_id):
            if job.state is not JobState.COMPLETED:
                print(f"{job.spec.lane_id}, seed {job.spec.seed}: {job.state.value}. {job.cause}".strip())
                continue
            path = Path(folder) / f"{job.spec.lane_id}-{job.spec.seed}.mp4"
            clip = client.fetch_artifact(path, kind=ArtifactKind.CLIP, job_id=job.spec.job_id)
            print(f"{path}: {clip.size_bytes} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
