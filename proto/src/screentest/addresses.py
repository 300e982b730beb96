"""What an address says about who can listen in on it."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches ``host:port``; a unix socket never leaves it. A name is not looked up."""
    if address.startswith("unix:"):
        return True
    host = host_of(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(address: str) -> str:
    """The host of ``host:port``, ``[::1]:port`` or gRPC's ``dns:///host:port``, without brackets."""
    host, _, _ = address.rpartition("/")[2].rpartition(":")
    return host.removeprefix("[").removesuffix("]")
