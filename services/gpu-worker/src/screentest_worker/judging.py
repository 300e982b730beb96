"""The work of a judge's lane: a clip or keyframe and a rubric in, a judgement out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from screentest import judgement, objects, rubric
from screentest.errors import BadRequest
from screentest.judges import JudgeLane
from screentest.records import (
    Artifact,
    ArtifactKind,
    DeviceFacts,
    Dispatch,
    FailureClass,
    JobSpec,
    Judged,
    JudgePurpose,
    Outcome,
    RubricRef,
)
from screentest.rubric import Rubric
from screentest_runner import protocol
from screentest_runner.protocol import Generate, Judge, Load
from screentest_worker import device_memory, facts, judge_preflight, judgements, outcome
from screentest_worker import weights_folder as layout
from screentest_worker.admission import Shortage
from screentest_worker.device_memory import DeviceMemory
from screentest_worker.facts import Place
from screentest_worker.hand import InHand, WithResult
from screentest_worker.inputs import Inputs
from screentest_worker.judge_preflight import Endpoint
from screentest_worker.preflight import Decision
from screentest_worker.spool import Spool
from screentest_worker.work import Made, Ran

_SMALLER: Final = "judge with a smaller judge, stop what else uses the device, or use a card with more memory"
_OTHER_WEIGHTS: Final = "fetch the judge's weights again, or correct [model] and [settings] in its file"


class Judging:
    """A `work.Work`. ``endpoint``: the server that a remote judge asks, None where none is named."""

    result: ArtifactKind = ArtifactKind.JUDGEMENT
    bad_input_fix: str = "if the clip was deleted, run its job again and judge the new one; else judge the sweep again"
    fixes: Mapping[FailureClass, str] = {
        FailureClass.OOM_LOAD: _SMALLER,
        FailureClass.OOM_DENOISE: _SMALLER,
        FailureClass.BAD_KWARGS: "correct the element that the cause names in the rubric, then judge the sweep again",
        FailureClass.LAYOUT: _OTHER_WEIGHTS,
        FailureClass.NAN: "set settings.dtype of the judge's file to float32, then judge again",
        FailureClass.TIMEOUT: "judge again with fewer elements, or raise limits in the judge's file",
        FailureClass.INFRASTRUCTURE: "mend what the cause names; the scheduler tries it again while its budget lasts",
        FailureClass.UNCLASSIFIED: "read the log of the job: it ends with the exception; then judge again",
    }

    def __init__(
        self, *, judge: JudgeLane, place: Place, endpoint: Endpoint | None, inputs: Inputs, spool: Spool
    ) -> None:
        self.lane_id = judge.id
        self.lane_digest = judge.digest
        self.content: dict[str, Any] = judge.content
        self._judge = judge
        self._place = place
        self._endpoint = endpoint
        self._inputs = inputs
        self._spool = spool

    def counts_memory(self, spec: JobSpec) -> bool:
        return self._judge.needs_memory_gib is not None

    def preflight(self, spec: JobSpec, rung: int | None, device: DeviceFacts | None) -> Decision:
        """A judge has no rungs."""
        return judge_preflight.decide(self._facts(device), spec)

    def shortage(self, dispatch: Dispatch, memory: DeviceMemory) -> Shortage | None:
        return judge_preflight.shortage(self._judge, memory)

    def ran(self, dispatch: Dispatch) -> Ran:
        return Ran(spec=dispatch.spec, rung_name="")

    def weights(self, spec: JobSpec) -> protocol.Weights:
        """Its own published ones, whatever the clip was made with."""
        return "hub"

    def load(self, dispatch: Dispatch, attempt_id: str, *, unified_memory: bool) -> Load:
        return Load(
            lane=self.content,
            weights="hub",
            rung={},
            cache_dir="",
            weights_dir=str(self._weights_dir) if self._judge.model is not None else None,
            attempt_id=attempt_id,
            memory_cap_gib=dispatch.spec.memory_cap_gib,
            unified_memory=unified_memory,
            # The key's path, never the key.
            endpoint=asdict(self._endpoint) if self._judge.adapter == "endpoint" and self._endpoint else None,
        )

    async def order(self, dispatch: Dispatch, attempt_id: str, path: Path) -> Judge:
        judged = _judged(dispatch.spec)
        asked = await self._rubric(dispatch, judged.rubric)
        other = await self._rubric(dispatch, judged.other_rubric) if judged.other_rubric is not None else None
        keyframe = await self._keyframe(dispatch)
        # Last, because it alone is removed afterwards.
        kind = ArtifactKind.KEYFRAME if judged.purpose is JudgePurpose.KEYFRAME else ArtifactKind.CLIP
        media = await self._inputs.fetch(dispatch, kind, judged.sha256, judged.size_bytes)
        return Judge(
            attempt_id=attempt_id,
            purpose=judged.purpose.value,
            media_path=str(media),
            questions=judgements.questions(asked),
            windows=asked.window_count,
            asked=_asked(dispatch.spec, asked, keyframe),
            judgement_path=str(path),
            other_questions=None if other is None else judgements.questions(other),
            other_windows=None if other is None else other.window_count,
        )

    def forget(self, order: Generate | Judge) -> None:
        """A clip is judged once or twice by one judge; a keyframe is wanted by every image-to-video clip."""
        assert isinstance(order, Judge)
        if order.purpose != JudgePurpose.KEYFRAME.value:
            Path(order.media_path).unlink(missing_ok=True)

    async def make(self, hand: InHand, end: WithResult) -> Made | Outcome:
        try:
            return await asyncio.to_thread(self._make, hand, end)
        except BadRequest as error:
            return outcome.failed(FailureClass.UNCLASSIFIED, str(error), "judging", fix="report this defect")
        except OSError as error:
            return outcome.infrastructure(f"the judgement cannot be written: {error}", "judging")
        finally:
            end.path.unlink(missing_ok=True)

    def _make(self, hand: InHand, end: WithResult) -> Made:
        spec, answer = hand.dispatch.spec, end.answer
        assert isinstance(answer, protocol.Judged)
        asked_model = self._endpoint.model if self._judge.adapter == "endpoint" and self._endpoint else None
        content = judgements.build(spec, _judged(spec), self._judge, answer, end.path.read_bytes(), asked_model)
        data = judgement.to_json(content)
        self._spool.file(hand.dispatch, self.result).write_bytes(data)
        artifact = Artifact(
            kind=self.result,
            key="",
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            content_type=objects.content_type(self.result),
        )
        return Made(artifact=artifact, outcome=replace(end.outcome, judgement=judgements.facts(self._judge, answer)))

    # ---- what it is given

    async def _rubric(self, dispatch: Dispatch, ref: RubricRef) -> Rubric:
        """Raises BadRequest also when it asks other things than the job says."""
        path = await self._inputs.fetch(dispatch, ArtifactKind.RUBRIC, ref.sha256, ref.size_bytes)
        found = rubric.from_json(path.read_text(encoding="utf-8"), ref.key)
        if found.sha256 != ref.rubric_sha256:
            raise BadRequest(f"{ref.key} is the rubric {found.sha256[:16]}, the job names {ref.rubric_sha256[:16]}")
        return found

    async def _keyframe(self, dispatch: Dispatch) -> Path | None:
        """What the clip should begin with; None where it was made from a prompt alone."""
        spec = dispatch.spec
        if spec.keyframe is None:
            return None
        return await self._inputs.fetch(dispatch, ArtifactKind.KEYFRAME, spec.keyframe.sha256, spec.keyframe.size_bytes)

    # ---- what is there

    @property
    def _weights_dir(self) -> Path:
        return facts.weights_folder(self._judge.id, self._place.models_dir)

    def _facts(self, device: DeviceFacts | None) -> judge_preflight.Facts:
        place, key = self._place, self._endpoint.key_file if self._endpoint is not None else None
        has_key = key is None or Path(key).is_file()
        return judge_preflight.Facts(
            judge=self._judge,
            missing_env=None if place.env_python.exists() else str(place.env_python),
            weights=layout.read(self._weights_dir) if self._judge.model is not None else None,
            endpoint=self._endpoint,
            missing_key=None if has_key else key,
            memory=device_memory.read(device) if device is not None else None,
        )


def _judged(spec: JobSpec) -> Judged:
    """Preflight refuses a job without."""
    assert spec.judged is not None
    return spec.judged


def _asked(spec: JobSpec, asked: Rubric, keyframe: Path | None) -> dict[str, Any]:
    """What the clip should be; nothing is asked of a keyframe's length or rate."""
    if _judged(spec).purpose is JudgePurpose.KEYFRAME:
        return {}
    return {
        "frames": spec.num_frames,
        "fps": spec.fps,
        "width_px": spec.width_px,
        "height_px": spec.height_px,
        "cuts_expected": sum(beat.cut_expected for beat in asked.beats),
        "keyframe_path": None if keyframe is None else str(keyframe),
    }
