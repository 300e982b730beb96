"""What is remembered of expired clips: the scheduler writes it down before it removes them, the reporter reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime

from screentest.errors import NotFound, Unavailable
from screentest.kit.store import Store

SCHEMA = "expired/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """``at``: of the last removal, aware UTC. ``is_told``: the sweep's history says so too."""

    at: datetime
    keys: tuple[str, ...]
    is_told: bool

    @property
    def text(self) -> str:
        return f"clip expired on {self.at:%Y-%m-%d}"


def clips_prefix(sweep_id: str) -> str:
    return f"{sweep_id}/clips/"


def _key(sweep_id: str) -> str:
    return f"{sweep_id}/expired.json"


async def read(store: Store, sweep_id: str) -> Expiry | None:
    """None when no clip of the sweep has expired. Unavailable when what is there cannot be read."""
    try:
        content = json.loads(await store.get(_key(sweep_id)))
        if content.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return Expiry(at=datetime.fromisoformat(content["at"]), keys=tuple(content["keys"]), is_told=content["is_told"])
    except NotFound:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"{_key(sweep_id)} cannot be read ({error}); look at it, or delete it") from error


async def write(store: Store, sweep_id: str, expiry: Expiry) -> None:
    content = {"schema": SCHEMA, **asdict(expiry), "at": expiry.at.isoformat()}
    await store.put(_key(sweep_id), json.dumps(content, indent=1).encode(), "application/json")
