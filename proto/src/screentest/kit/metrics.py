"""Numbers for Prometheus: one registry per service, served over HTTP when an address is configured.

What is unknown has no series: a 0 that was never measured would be believed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from screentest.errors import BadRequest, Unavailable
from screentest.kit.version import version

log = structlog.get_logger()

# A scrape waits for the service's loop; one that is blocked for longer is a finding of its own.
READ_WITHIN_S = 5.0

# From a warm miniature's decode to the longest attempt.
SECONDS_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What one name means. A counter's name ends in ``_total``, a unit stands before that: ``_bytes``, ``_seconds``."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


BUILD = Family(name="screentest_build_info", help="1; which code this is, in its label.", labels=("version",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One sample at the moment of the scrape; ``value`` None = unknown, and left out."""

    family: Family
    labels: Mapping[str, str]
    value: float | None


class Metrics:
    """The registry of one service."""

    def __init__(self) -> None:
        # Another series per counter, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Gauge(BUILD.name, BUILD.help, BUILD.labels, registry=self.registry).labels(version()).set(1)

    def counter(self, family: Family) -> Counter:
        return Counter(family.name, family.help, family.labels, registry=self.registry)

    def histogram(self, family: Family, buckets: tuple[float, ...] = SECONDS_BUCKETS) -> Histogram:
        return Histogram(family.name, family.help, family.labels, buckets=buckets, registry=self.registry)

    def at_scrape(self, read: Callable[[], Iterable[Number]]) -> None:
        """``read`` is called in the loop of the caller, so it may look at what the loop changes."""
        self.registry.register(_LoopCollector(asyncio.get_running_loop(), read))

    @contextlib.contextmanager
    def served(self, address: str) -> Iterator[None]:
        """On ``host:port``; empty = not at all. BadRequest for no address, Unavailable when the port is taken."""
        if not address:
            yield
            return
        host, port = _parts(address)
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise Unavailable(
                f"metrics cannot listen on {address} ({error.strerror}); free it or set SCREENTEST_METRICS_ADDRESS"
            ) from error
        log.info("metrics_served", address=address)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join(timeout=1)


class _LoopCollector(Collector):
    """Prometheus scrapes from a thread; the service's state belongs to its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, read: Callable[[], Iterable[Number]]) -> None:
        self._loop = loop
        self._read = read

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing beforehand: the registry would otherwise read at once, from the loop itself."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        answer: concurrent.futures.Future[list[Number]] = concurrent.futures.Future()

        def read() -> None:
            try:
                answer.set_result(list(self._read()))
            except Exception as error:  # noqa: BLE001  # it belongs to the scrape that asked
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(read)
        return _families(answer.result(timeout=READ_WITHIN_S))


def _families(numbers: Iterable[Number]) -> list[GaugeMetricFamily | CounterMetricFamily]:
    """One family per name that has a known value."""
    found: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for number in numbers:
        if number.value is None:
            continue
        family = number.family
        if family.name not in found:
            made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            found[family.name] = made(family.name, family.help, labels=family.labels)
        found[family.name].add_metric([number.labels[name] for name in family.labels], number.value)
    return list(found.values())


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise BadRequest(f"SCREENTEST_METRICS_ADDRESS={address!r} is no address; say for example 127.0.0.1:9464")
    return host.removeprefix("[").removesuffix("]"), int(port)
