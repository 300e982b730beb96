"""TCP ports on loopback: choose free ones, and say who holds one that is taken."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from screentest.errors import Unavailable
from screentest.kit.clock import process_of

LOOPBACK = "127.0.0.1"

# Below the ephemeral range (32768 on Linux): a port that we remember is not lent to an outgoing connection meanwhile.
FIRST, LAST = 20000, 32000


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT is not "in use"
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(count: int) -> tuple[int, ...]:
    """``count`` different ports that are free now."""
    chosen: list[int] = []
    candidates = random.SystemRandom().sample(range(FIRST, LAST), k=min(LAST - FIRST, 50 * count + 200))
    for port in candidates:
        if len(chosen) == count:
            break
        if is_free(port):
            chosen.append(port)
    if len(chosen) < count:
        raise Unavailable(f"no {count} free ports between {FIRST} and {LAST}; stop something that listens there")
    return tuple(chosen)


def require_free(port: int, what: str, setting: str) -> None:
    """Unavailable that names the port, its holder and the way out."""
    if is_free(port):
        return
    raise Unavailable(
        f"port {port} for {what} is in use by {holder_of(port) or 'a process of another user'}; "
        f"stop it or choose another port with {setting}=<port>"
    )


def accepts(port: int) -> bool:
    """True when something listens there."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=0.5):
            return True
    except OSError:
        return False


def holder_of(port: int) -> str | None:
    """``pid 12 (command)`` of the process that listens on the port; None when /proc does not tell us."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_held_by(port, int(entry.name)):
            process = process_of(int(entry.name))
            return f"pid {entry.name} ({process.command[:80] if process else 'ended'})"
    return None


def is_held_by(port: int, pid: int) -> bool:
    """True when this very process listens there; an answer on a port may be somebody else's."""
    try:
        links = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return False
    return not links.isdisjoint(_listening_inodes(port))


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:  # 0A = LISTEN
                inodes.add(f"socket:[{columns[9]}]")
    return inodes
