"""Hears every event of a sweep exactly once, over as many starts of this program as it takes.

python resume_watch.py <sweep id> cursor.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

from screentest.client import Client
from screentest.records import JobEvent, SweepEvent, SweepSettled


def main(sweep_id: str, cursor_file: str, most: str = "") -> None:
    """``most``: how many events to take before leaving; empty = all."""
    place, left = Path(cursor_file), int(most or 1_000_000)
    cursor = place.read_text() if place.exists() else ""
    with Client.from_environment() as client:
        for message in client.watch(sweep_id, cursor):
            if not isinstance(message.body, JobEvent | SweepEvent):
                continue  # progress and heartbeats repeat the cursor of the last event
            print(type(message.body.body).__name__)
            # Written behind the event: if we die in between, the event comes again rather than never.
            place.write_text(message.cursor)
            left -= 1
            if not left or isinstance(message.body.body, SweepSettled):
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
