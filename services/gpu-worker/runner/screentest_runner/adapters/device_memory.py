"""Device memory that torch holds: a cap on it, and its peak in each phase of an attempt."""

from __future__ import annotations

from screentest_runner.protocol import Phase

GIB = 2**30


def cap_memory(cap_gib: float) -> None:
    """Torch may take so much of the device and no more: past it comes the error of a card that is full."""
    import torch

    total = torch.cuda.get_device_properties().total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gib * GIB / total))


class PhaseMemory:
    """Peak device memory of each phase that is over, in bytes, by the phase's name."""

    def __init__(self, *, is_known: bool) -> None:
        self.is_known = is_known  # not on a cpu
        self.held: dict[str, int] = {}
        self.tensors: dict[str, int] = {}

    def reset(self) -> None:
        """Forget the attempt before; the load's peak stays."""
        for peaks in (self.held, self.tensors):
            for phase in peaks.keys() - {Phase.LOADING.value}:
                del peaks[phase]
        if self.is_known:
            import torch

            torch.cuda.reset_peak_memory_stats()  # an attempt that failed has left its own

    def phase_ended(self, phase: Phase) -> None:
        """Waits for the device, so that no work of this phase counts, in time or memory, for the next."""
        if not self.is_known:
            return
        import torch

        torch.cuda.synchronize()
        self.phase_failed(phase)
        torch.cuda.reset_peak_memory_stats()

    def phase_failed(self, phase: Phase) -> None:
        """Its peak so far, by torch's own count: the device may have nothing left to answer with."""
        if not self.is_known:
            return
        import torch

        self.held[phase.value] = torch.cuda.max_memory_reserved()
        self.tensors[phase.value] = torch.cuda.max_memory_allocated()

    def held_now(self) -> int | None:
        """Bytes that torch holds at this moment; None where unknown."""
        if not self.is_known:
            return None
        import torch

        return int(torch.cuda.memory_reserved())

    def peak(self) -> int | None:
        """Of the last attempt; None where unknown."""
        return max((held for phase, held in self.held.items() if phase != Phase.LOADING.value), default=None)
