"""The runner's main loop: one request after the other, while a second thread listens for Cancel and Stop."""

from __future__ import annotations

import fcntl
import os
import queue
import resource
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, BinaryIO

from screentest_runner import frames
from screentest_runner.adapters import Adapter, Holder, holder_of
from screentest_runner.adapters.judge import JudgeAdapter
from screentest_runner.failures import OOM_BY_PHASE, AttemptFailure, classify
from screentest_runner.judging.presence import presence
from screentest_runner.progress import AttemptProgress, phase_changed
from screentest_runner.protocol import (
    Cancel,
    Decoded,
    Failed,
    FailureClass,
    Generate,
    Judge,
    Judged,
    Load,
    Loaded,
    LockBusy,
    Locked,
    Message,
    Open,
    Phase,
    Prepare,
    Prepared,
    ProtocolError,
    RunnerReply,
    Stop,
    Stopped,
    parse,
    to_line,
)


class Outbox:
    """The reply descriptor. A supervisor that is gone ends the runner: nobody else may hold the device for it."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._fd = fd
        self._lock = Lock()

    def send(self, reply: RunnerReply) -> None:
        line = memoryview(to_line(reply))
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except BrokenPipeError:
                os._exit(1)


class Inbox:
    """Requests from stdin, read by a thread of its own so that Cancel and Stop act in the middle of a step."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lock = Lock()
        self._cancelled: dict[str, Event] = {}
        self._stopping = False

    def start(self) -> None:
        Thread(target=self._read, name="requests", daemon=True).start()

    def next(self) -> Message:
        return self._requests.get()

    def cancellation(self, attempt_id: str) -> Event:
        """The event that a Cancel of this attempt sets, also one that came before its Generate, and that Stop sets."""
        with self._lock:
            event = self._cancelled.setdefault(attempt_id, Event())
            if self._stopping:
                event.set()
            return event

    def forget(self, attempt_id: str) -> None:
        """Drop the event of an attempt that has ended."""
        with self._lock:
            self._cancelled.pop(attempt_id, None)

    def _read(self) -> None:
        for line in self._stream:
            try:
                message = parse(line)
            except ProtocolError as error:
                # both sides are of one commit, so this is a defect: die loudly instead of ignoring a request
                print(f"protocol error: {error}", file=sys.stderr, flush=True)  # noqa: T201  (into the runner's log)
                os._exit(2)
            match message:
                case Cancel(attempt_id=attempt_id):
                    self.cancellation(attempt_id).set()
                case Stop():
                    self._stop()
                    self._requests.put(message)
                case _:
                    self._requests.put(message)
        # the supervisor is gone; the main thread may sit in a CUDA call that no exception reaches
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            for event in self._cancelled.values():
                event.set()


class Runner:
    """What one process has: at most one device, one lane, one loaded pipeline or judge."""

    def __init__(self, inbox: Inbox, outbox: Outbox) -> None:
        self._inbox = inbox
        self._send = outbox.send
        self._adapter: Holder | None = None
        self._lane_id: str | None = None
        self._lane: dict[str, Any] = {}
        self._versions: dict[str, str] = {}
        self._device: str | None = None
        self._loads = 0

    def run(self) -> None:
        """Serve requests until Stop."""
        while True:
            request = self._inbox.next()
            if isinstance(request, Stop):
                self._send(Stopped())
                return
            self.serve(request)

    def serve(self, request: Message) -> None:
        """One request but Stop. What becomes of it is sent."""
        match request:
            case Prepare():
                self._guard(request, None, Phase.PREPARING)
            case Open():
                self._open(request)
            case Load():
                self._guard(request, request.attempt_id, Phase.LOADING)
            case Generate():
                self._attempt(request, request.limit_s, Phase.ENCODING_PROMPT)
            case Judge():
                self._attempt(request, None, Phase.JUDGING)
            case _:
                raise ProtocolError(f"{type(request).__name__} is no request to a runner")

    def _guard(self, request: Prepare | Load, attempt_id: str | None, phase: Phase) -> None:
        self._send(phase_changed(attempt_id, phase))
        try:
            self._send(self._prepare(request) if isinstance(request, Prepare) else self._load(request))
        except Exception as error:  # noqa: BLE001  (library code raises anything; each becomes a Failed)
            self._send(_failed(attempt_id, error, phase))

    def _open(self, request: Open) -> None:
        """The flock is the first act before CUDA. The descriptor stays open until the process dies, and is never
        unlocked: LOCK_UN would free the device under a child that still uses it.
        """
        try:
            fcntl.flock(request.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._send(LockBusy())
            return
        except OSError as error:
            self._send(_failed(None, error, Phase.PREPARING))
            return
        self._device = request.device
        self._send(Locked())

    def _prepare(self, request: Prepare) -> Prepared:
        began = time.perf_counter()
        adapter = self._adapter_for(request.lane)
        self._versions = adapter.prepare()
        return Prepared(versions=self._versions, import_s=time.perf_counter() - began)

    def _adapter_for(self, lane: dict[str, Any]) -> Holder:
        if self._adapter is not None and self._lane_id == lane["id"]:
            return self._adapter
        if self._adapter is not None:
            raise AttemptFailure(
                FailureClass.INFRASTRUCTURE,
                f"this runner serves lane {self._lane_id!r}, not {lane['id']!r}; start another",
            )
        self._adapter, self._lane, self._lane_id = holder_of(lane), lane, lane["id"]
        return self._adapter

    def _load(self, request: Load) -> Loaded:
        if self._device is None:
            raise AttemptFailure(FailureClass.INFRASTRUCTURE, "Load before Open: the device is not locked")
        if self._loads:
            raise AttemptFailure(FailureClass.INFRASTRUCTURE, "this runner has loaded already; start another")
        adapter = self._adapter_for(request.lane)
        if not self._versions:
            self._versions = adapter.prepare()
        began = time.perf_counter()
        build_s = adapter.load(request, self._device)
        self._loads += 1
        return Loaded(
            load_s=time.perf_counter() - began - (build_s or 0.0),
            loads=self._loads,
            versions=self._versions,
            build_s=build_s,
            rss_bytes=_rss_bytes(),
            device_bytes=adapter.device_bytes(),
        )

    def _attempt(self, request: Generate | Judge, limit_s: float | None, first: Phase) -> None:
        cancelled = self._inbox.cancellation(request.attempt_id)
        progress = AttemptProgress(request.attempt_id, self._send, cancelled, limit_s, first)
        try:
            self._send(
                self._decode(request, progress) if isinstance(request, Generate) else self._judge(request, progress)
            )
        except Exception as error:  # noqa: BLE001  (as above)
            self._send(self._with_peaks(_failed(request.attempt_id, error, progress.phase)))
        finally:
            self._inbox.forget(request.attempt_id)

    def _with_peaks(self, failed: Failed) -> Failed:
        """What a want of memory had taken until then; of any other failure the device is not asked any more."""
        if self._adapter is None or failed.failure_class not in OOM_BY_PHASE.values():
            return failed
        self._adapter.phase_failed(failed.phase)
        return replace(
            failed,
            peak_device_bytes=self._adapter.peak_device_bytes(),
            peak_memory_by_phase=self._adapter.peak_memory_by_phase(),
        )

    def _decode(self, request: Generate, progress: AttemptProgress) -> Decoded:
        adapter: Adapter = self._loaded(request)
        progress.check_cancelled()
        clip = adapter.generate(request, progress)
        asked = {name: request.call.get(kwarg) for name, kwarg in self._lane["parameters"].items()}
        frames.check_shape(
            clip, frames=asked.get("num_frames"), height_px=asked.get("height_px"), width_px=asked.get("width_px")
        )
        began = time.perf_counter()
        frames.write(clip, Path(request.frames_path))
        writing_s = time.perf_counter() - began
        progress.enter(Phase.DECODED)
        count, height_px, width_px, _ = clip.pixels.shape
        return Decoded(
            attempt_id=request.attempt_id,
            frames=count,
            height_px=height_px,
            width_px=width_px,
            timings_s={
                **progress.timings_s,
                Phase.DECODING.value: progress.timings_s[Phase.DECODING.value] - writing_s,
                "writing": writing_s,
            },
            versions=self._versions,
            finite_fraction=clip.finite_fraction,
            loads=self._loads,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            peak_device_bytes=adapter.peak_device_bytes(),
            peak_memory_by_phase=adapter.peak_memory_by_phase(),
            peak_tensors_by_phase=adapter.peak_tensors_by_phase(),
        )

    def _judge(self, request: Judge, progress: AttemptProgress) -> Judged:
        judge: JudgeAdapter = self._loaded(request)
        progress.check_cancelled()
        found = judge.judge(request, progress)
        progress.end_phase()
        return Judged(
            attempt_id=request.attempt_id,
            judgement_path=request.judgement_path,
            method=found["method"],
            calls=found["calls"],
            badges=found["badges"],
            presence=presence(found["answers"], request.questions),
            timings_s=progress.timings_s,
            versions=self._versions,
            loads=self._loads,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            peak_device_bytes=judge.peak_device_bytes(),
            peak_memory_by_phase=judge.peak_memory_by_phase(),
        )

    def _loaded(self, request: Generate | Judge) -> Any:
        """What this process holds, when it is what the request is for."""
        what = type(request).__name__
        if self._adapter is None or not self._loads:
            raise AttemptFailure(FailureClass.INFRASTRUCTURE, f"{what} before Load: nothing is on the device")
        if isinstance(self._adapter, JudgeAdapter) != isinstance(request, Judge):
            raise AttemptFailure(FailureClass.INFRASTRUCTURE, f"{what} is nothing that lane {self._lane_id!r} does")
        return self._adapter


def _failed(attempt_id: str | None, error: Exception, phase: Phase) -> Failed:
    """An AttemptFailure explains itself; of any other exception the log wants the traceback."""
    text = "" if isinstance(error, AttemptFailure) else traceback.format_exc()
    message = str(error) or type(error).__name__
    if not isinstance(error, AttemptFailure):
        message = f"{type(error).__name__}: {message}"
    return Failed(
        attempt_id=attempt_id,
        failure_class=classify(error, phase),
        phase=phase,
        message=message,
        traceback=text,
    )


def _rss_bytes() -> int:
    """Resident memory now. Source: proc(5), second field of /proc/self/statm, in pages."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
