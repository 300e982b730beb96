"""What attempts have taught: which rung is enough, and what a clip takes. Pure.

It begins with what is shipped and learns from the end of every attempt: a fold of the events. What a sweep has taught
is told in its farewell, so a restart brings it back when the stream no longer holds the attempts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from screentest import estimates, lanes, memory
from screentest.measured import Experience, Key, Measured, Shape
from screentest.records import Estimate, JobSpec, Lesson, LoadTime, Outcome, PhaseMemory, Weights, WonRung
from screentest_scheduler.ladder import Circumstance, WinningRungs
from screentest_scheduler.planning import Placement, Work, rung_names

NO_LANES: Mapping[str, lanes.Lane] = {}
NOTHING_MEASURED = Measured()


class Lessons:
    """``catalogue``: the lanes that something can be learned of."""

    def __init__(self, catalogue: Mapping[str, lanes.Lane] = NO_LANES, measured: Measured = NOTHING_MEASURED) -> None:
        self._catalogue = catalogue
        self._digests = {lane_id: lanes.lane_digest(lane) for lane_id, lane in catalogue.items()}  # 0.5 ms each
        self._measured = measured
        self._last_at: dict[Key, datetime] = {}
        self._known: dict[tuple[object, ...], Estimate] = {}
        self.winning_rungs = WinningRungs()

    def blank(self) -> Lessons:
        """Of the same lanes, with nothing known."""
        made = Lessons()
        made._catalogue, made._digests = self._catalogue, self._digests
        return made

    def learn(self, spec: JobSpec, rung: int, outcome: Outcome, at: datetime, *, shared_gpu: bool) -> None:
        """From the end of an attempt, which was then. A clip made beside a stranger says nothing about the card alone,
        and one of an older lane file, with another dtype or ladder, nothing about the lane of today.
        """
        if shared_gpu:
            return
        self.winning_rungs.learn(spec, rung, outcome, at)
        lane = self._lane_of(spec)
        if lane is None:
            return
        # Every model's ladder has a rung that only streams; it is left out where host and device share their memory.
        is_unified = "" in spec.rungs
        learned = estimates.learn(self._measured, lane, spec, rung, outcome, unified=is_unified)
        if learned is not self._measured:
            *_, newest = learned.learned
            self._last_at[newest] = max(at, self._last_at.get(newest, at))
            self._take(learned)

    def told(self) -> tuple[Lesson, ...]:
        """What clips taught, without what was shipped, to be recalled another day."""
        return tuple(
            _lesson(clip, self._digests[clip.lane_id], self._last_at[key])
            for key, clip in self._measured.learned.items()
        )

    def recall(self, lessons: Iterable[Lesson], won: Iterable[WonRung]) -> None:
        """What was told before; of a lane file that is no longer this one, nothing."""
        self.winning_rungs.recall(won)
        for lesson in lessons:
            if self._digests.get(lesson.lane_id) != lesson.lane_digest:
                continue
            clip = _experience(lesson)
            known_at = self._last_at.get(clip.key, lesson.at)
            self._last_at[clip.key] = max(known_at, lesson.at)
            self._take(estimates.remember(self._measured, clip, is_older=lesson.at < known_at))

    def _take(self, measured: Measured) -> None:
        self._measured = measured
        self._known.clear()

    def estimates(self, lane: lanes.Lane, work: Work, placement: Placement) -> tuple[Estimate, ...]:
        """One for every rung that this device can use."""
        return tuple(
            self._estimate(lane, work, rung, placement) for rung in lanes.usable_rungs(lane, placement.is_unified)
        )

    def first_rung(self, lane: lanes.Lane, work: Work, placement: Placement) -> int:
        """Where an attempt begins when it has the device to itself: the first that fits, else the last there is; and
        not above the one that was needed before.
        """
        return max(self._rung_that_fits(lane, work, placement), self.winning_rungs.rung(_here(lane, work, placement)))

    def _rung_that_fits(self, lane: lanes.Lane, work: Work, placement: Placement) -> int:
        """By the numbers; 0 where there are none, and for miniatures, which fit anywhere."""
        total_bytes = placement.facts.memory_total_bytes if placement.facts is not None else None
        if work.weights is Weights.MINIATURE or total_bytes is None:
            return 0
        found = memory.first_rung(
            lane,
            _shape(work),
            total_bytes,
            self._measured,
            unified=placement.is_unified,
            memory_cap_gib=work.memory_cap_gib,
        )
        return lanes.usable_rungs(lane, placement.is_unified)[-1] if found is None else found

    def of_job(self, spec: JobSpec, rung: int, placement: Placement) -> Estimate | None:
        """What is known now, which may be more than its plan knew; None when its lane file has changed since."""
        lane = self._lane_of(spec)
        if lane is None:
            return None
        work = Work(
            weights=spec.weights,
            width_px=spec.width_px,
            height_px=spec.height_px,
            num_frames=spec.num_frames,
            steps=spec.steps,
            call=spec.call,
            memory_cap_gib=spec.memory_cap_gib,
        )
        return self._estimate(lane, work, rung, placement)

    def _lane_of(self, spec: JobSpec) -> lanes.Lane | None:
        """The job's lane; None when its file is gone or has changed since."""
        return self._catalogue.get(spec.lane_id) if self._digests.get(spec.lane_id) == spec.lane_digest else None

    def _estimate(self, lane: lanes.Lane, work: Work, rung: int, placement: Placement) -> Estimate:
        """Computed once for all jobs alike: ten thousand of them wait in a queue."""
        facts = placement.facts
        gpu_name = facts.gpu_name if facts is not None else None
        total_bytes = facts.memory_total_bytes if facts is not None else None
        key = (lane.id, rung, gpu_name, total_bytes, placement.is_unified, work.alike)
        if key not in self._known:
            cap_gib = work.memory_cap_gib
            free = None if total_bytes is None else memory.torch_may_hold(total_bytes, cap_gib)
            capped = None if cap_gib is None else int(cap_gib * memory.GIB)
            self._known[key] = estimates.estimate(
                lane,
                rung,
                _shape(work),
                work.steps,
                gpu_name,
                self._measured,
                unified=placement.is_unified,
                call={item.name: item.value for item in work.call},
                weights=work.weights.value,
                torch_bytes=capped if free is None else free,
            )
        return self._known[key]


def _lesson(clip: Experience, lane_digest: str, at: datetime) -> Lesson:
    return Lesson(
        lane_id=clip.lane_id,
        lane_digest=lane_digest,
        at=at,
        rung_name=clip.rung,
        width_px=clip.shape.width_px,
        height_px=clip.shape.height_px,
        num_frames=clip.shape.num_frames,
        gpu_name=clip.gpu,
        steps=clip.steps,
        clips=clip.clips,
        step_s=clip.step_s,
        start_s=clip.start_s,
        encode_s=clip.encode_s,
        decode_s=clip.decode_s,
        step_tflop=clip.step_tflop,
        memory_cap_gib=clip.memory_cap_gib,
        loads=tuple(LoadTime(weights=Weights(kind), seconds=seconds) for kind, seconds in clip.load_s.items()),
        held=tuple(PhaseMemory(phase=phase, peak_bytes=held) for phase, held in clip.held_bytes.items()),
        is_unified=clip.is_unified,
    )


def _experience(lesson: Lesson) -> Experience:
    return Experience(
        lane_id=lesson.lane_id,
        rung=lesson.rung_name,
        shape=Shape(width_px=lesson.width_px, height_px=lesson.height_px, num_frames=lesson.num_frames),
        gpu=lesson.gpu_name,
        steps=lesson.steps,
        clips=lesson.clips,
        step_s=lesson.step_s,
        start_s=lesson.start_s,
        encode_s=lesson.encode_s,
        decode_s=lesson.decode_s,
        step_tflop=lesson.step_tflop,
        memory_cap_gib=lesson.memory_cap_gib,
        load_s={load.weights.value: load.seconds for load in lesson.loads},
        held_bytes={peak.phase: peak.peak_bytes for peak in lesson.held},
        is_unified=lesson.is_unified,
    )


def _here(lane: lanes.Lane, work: Work, placement: Placement) -> Circumstance:
    return Circumstance(
        lane_id=lane.id,
        lane_digest=lanes.lane_digest(lane),
        rungs=rung_names(lane, placement),
        width_px=work.width_px,
        height_px=work.height_px,
        num_frames=work.num_frames,
        is_miniature=work.weights is Weights.MINIATURE,
        memory_cap_gib=work.memory_cap_gib,
        gpu_name=placement.facts.gpu_name if placement.facts is not None else None,
    )


def _shape(work: Work) -> Shape:
    return Shape(width_px=work.width_px, height_px=work.height_px, num_frames=work.num_frames)
