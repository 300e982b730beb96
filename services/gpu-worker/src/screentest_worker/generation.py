"""The work of a model's lane: prompt and keyframe in, a clip out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from screentest import lanes
from screentest.lanes import Lane
from screentest.records import ArtifactKind, DeviceFacts, Dispatch, FailureClass, JobSpec, Outcome, Weights
from screentest_runner import protocol
from screentest_runner.protocol import Generate, Judge, Load
from screentest_worker import admission, facts, preflight, rung
from screentest_worker.admission import Shortage
from screentest_worker.clips import ClipMaking
from screentest_worker.device_memory import DeviceMemory
from screentest_worker.facts import Place
from screentest_worker.hand import InHand, WithResult
from screentest_worker.inputs import Inputs
from screentest_worker.preflight import Decision
from screentest_worker.work import Made, Ran


class Generation:
    """A `work.Work`. ``cache_dir``: where miniatures are kept."""

    result: ArtifactKind = ArtifactKind.CLIP
    bad_input_fix: str = "upload the keyframe again and submit with the new one"
    fixes: Mapping[FailureClass, str] = {}

    def __init__(self, *, lane: Lane, place: Place, cache_dir: Path, inputs: Inputs, making: ClipMaking) -> None:
        self.lane_id = lane.id
        self.lane_digest = lanes.lane_digest(lane)
        self.content = lanes.to_json(lane)
        self._lane = lane
        self._place = place
        self._cache_dir = cache_dir
        self._inputs = inputs
        self._making = making

    def counts_memory(self, spec: JobSpec) -> bool:
        """Miniatures fit anywhere."""
        return spec.weights is not Weights.MINIATURE

    def preflight(self, spec: JobSpec, rung: int | None, device: DeviceFacts | None) -> Decision:
        return preflight.decide(facts.gather(self._lane, spec.weights, self._place, device), spec, rung)

    def shortage(self, dispatch: Dispatch, memory: DeviceMemory) -> Shortage | None:
        return admission.shortage(self._lane, dispatch.spec, dispatch.rung, memory, self._place.measured)

    def ran(self, dispatch: Dispatch) -> Ran:
        names = [step.name for step in self._lane.ladder]
        return Ran(
            spec=rung.as_run(self._lane, dispatch.spec, dispatch.rung),
            rung_name=names[dispatch.rung] if dispatch.rung < len(names) else "",
            marks=rung.marks(self._lane, dispatch.spec, dispatch.rung),
        )

    def weights(self, spec: JobSpec) -> protocol.Weights:
        return spec.weights.value

    def load(self, dispatch: Dispatch, attempt_id: str, *, unified_memory: bool) -> Load:
        spec = dispatch.spec
        weights_dir = facts.weights_folder(self._lane.id, self._place.models_dir)
        return Load(
            lane=self.content,
            weights=self.weights(spec),
            rung=self.content["ladder"][dispatch.rung],
            cache_dir=str(self._cache_dir),
            weights_dir=str(weights_dir) if spec.weights is Weights.HUB else None,
            attempt_id=attempt_id,
            memory_cap_gib=spec.memory_cap_gib,
            unified_memory=unified_memory,
        )

    async def order(self, dispatch: Dispatch, attempt_id: str, path: Path) -> Generate:
        spec, keyframe = dispatch.spec, None
        if spec.keyframe is not None:
            keyframe = await self._inputs.fetch(
                dispatch, ArtifactKind.KEYFRAME, spec.keyframe.sha256, spec.keyframe.size_bytes
            )
        return Generate(
            attempt_id=attempt_id,
            call=rung.call_of(self.ran(dispatch).spec),
            seed=spec.seed,
            frames_path=str(path),
            fps=spec.fps,
            keyframe_path=None if keyframe is None else str(keyframe),
        )

    def forget(self, order: Generate | Judge) -> None:
        """Nothing: the other jobs of the sweep want the same keyframe."""

    async def make(self, hand: InHand, end: WithResult) -> Made | Outcome:
        return await self._making.make(hand, end)
