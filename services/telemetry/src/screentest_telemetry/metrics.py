"""Telemetry's numbers: the newest vitals of every GPU and of the host, and the last proof of every device."""

from __future__ import annotations

from collections.abc import Iterator

from screentest.kit import clock
from screentest.kit.metrics import Family, Number
from screentest.records import GpuInfo, GpuSample, Proof, VitalsBatch

# Batches come once a second; what is older than this is no news of the machine any more.
STALE_AFTER_S = 5.0
MJ_PER_J = 1000.0
PERCENT = 100.0

_GPU = ("host", "device", "uuid")
ENERGY = Family(
    name="screentest_gpu_energy_joules_total",
    help="The driver's own energy counter, since the driver was loaded.",
    labels=_GPU,
    kind="counter",
)
POWER = Family(name="screentest_gpu_power_watts", help="As the driver reads it.", labels=_GPU)
MEMORY_USED = Family(name="screentest_gpu_memory_used_bytes", help="By everybody on the device.", labels=_GPU)
MEMORY_TOTAL = Family(name="screentest_gpu_memory_total_bytes", help="Of the device.", labels=_GPU)
UTILISATION = Family(name="screentest_gpu_utilisation_ratio", help="0 to 1, as the driver reads it.", labels=_GPU)
TEMPERATURE = Family(name="screentest_gpu_temperature_celsius", help="Of the chip.", labels=_GPU)
CLEAN = Family(
    name="screentest_device_clean",
    help="1 when the last proof that was asked for found the device clean.",
    labels=("host", "device", "proof"),
)
PROVEN_AT = Family(
    name="screentest_device_proof_timestamp_seconds",
    help="When that proof was given, Unix time.",
    labels=("host", "device", "proof"),
)
HOST_CPU = Family(name="screentest_host_cpu_ratio", help="0 to 1, all cores together.", labels=("host",))
HOST_USED = Family(name="screentest_host_memory_used_bytes", help="As the kernel counts it.", labels=("host",))
HOST_TOTAL = Family(name="screentest_host_memory_total_bytes", help="Of the machine.", labels=("host",))


class Newest:
    """What was seen last. A batch that grew stale and a value that the driver does not give are left out."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._batch: VitalsBatch | None = None
        self._proofs: dict[tuple[str, str], Proof] = {}

    def take_batch(self, batch: VitalsBatch) -> None:
        self._batch = batch

    def take_proof(self, device: str, proof: Proof) -> None:
        self._proofs[(device, proof.kind.value)] = proof

    def read(self) -> Iterator[Number]:
        for (device, kind), proof in self._proofs.items():
            labels = {"host": self._host, "device": device, "proof": kind}
            yield Number(family=CLEAN, labels=labels, value=proof.clean)
            yield Number(family=PROVEN_AT, labels=labels, value=proof.stamp.at.timestamp())
        batch = self._batch
        if batch is None or (clock.boottime_ns() - batch.stamp.boottime_ns) / 1e9 > STALE_AFTER_S:
            return
        yield from self._host_numbers(batch)
        samples = {sample.gpu_uuid: sample for sample in batch.gpu_samples}  # the last one of each stays
        for gpu in batch.gpus:
            if gpu.uuid in samples:
                yield from self._gpu_numbers(gpu, samples[gpu.uuid])

    def _host_numbers(self, batch: VitalsBatch) -> Iterator[Number]:
        if not batch.host_samples:
            return
        newest, labels = batch.host_samples[-1], {"host": self._host}
        yield Number(family=HOST_CPU, labels=labels, value=_scaled(newest.cpu_percent, PERCENT))
        yield Number(family=HOST_USED, labels=labels, value=newest.memory_used_bytes)
        yield Number(family=HOST_TOTAL, labels=labels, value=newest.memory_total_bytes)

    def _gpu_numbers(self, gpu: GpuInfo, sample: GpuSample) -> Iterator[Number]:
        labels = {"host": self._host, "device": f"gpu-{gpu.index}", "uuid": gpu.uuid}
        for family, value in (
            (ENERGY, _scaled(sample.energy_mj, MJ_PER_J)),
            (POWER, sample.power_w),
            (MEMORY_USED, sample.memory_used_bytes),
            (MEMORY_TOTAL, sample.memory_total_bytes),
            (UTILISATION, _scaled(sample.utilisation_percent, PERCENT)),
            (TEMPERATURE, sample.temperature_c),
        ):
            yield Number(family=family, labels=labels, value=value)


def _scaled(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor
