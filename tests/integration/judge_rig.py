"""The worker's rig for a judge's lane: clips and rubrics in the stand-in depot, and jobs that judge them."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import math
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageStat

from screentest import judgement, objects, rubric
from screentest.judgement import Judgement
from screentest.judges import JudgeLane, load_judge
from screentest.records import (
    ArtifactKind,
    JobSpec,
    Judged,
    JudgePurpose,
    Limits,
    Outcome,
    RubricRef,
    Task,
    UrlRequest,
    Weights,
)
from tests.integration.worker_rig import DEVICE, HOST, SWEEP, VENVS, Rig

JUDGE_PYTHON = VENVS / "judge" / "bin" / "python"


@dataclass
class JudgeRig(Rig):
    """``clips``: key in the depot by sha256, of what is there to be judged."""

    clips: dict[str, str] = field(default_factory=dict)

    @property
    def lane(self) -> JudgeLane:  # type: ignore[override]
        return load_judge(self.lane_file)

    def rung_name(self, rung: int) -> str:
        return ""

    def key(self, asked: UrlRequest) -> str:
        match asked.kind:
            case ArtifactKind.CLIP:
                return self.clips[asked.sha256]
            case ArtifactKind.RUBRIC:
                return objects.rubric(asked.sha256)
            case _:
                return super().key(asked)

    def put_clip(self, data: bytes) -> str:
        """In the depot, as a model's lane left it; its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.clips[sha256] = f"{SWEEP}/clips/scene-p0-1-{sha256[:16]}.mp4"
        self.depot.objects[f"/{self.clips[sha256]}"] = data
        return sha256

    def put_rubric(self, asked: rubric.Rubric) -> RubricRef:
        data = rubric.to_json(asked).encode()
        sha256 = hashlib.sha256(data).hexdigest()
        self.depot.objects[f"/{objects.rubric(sha256)}"] = data
        return RubricRef(
            prompt_index=0,
            key=objects.rubric(sha256),
            sha256=sha256,
            size_bytes=len(data),
            rubric_sha256=asked.sha256,
        )

    def judge_spec(self, clip: bytes, asked: rubric.Rubric, **changes: Any) -> JobSpec:
        """A job that judges the clip; ``changes`` are fields of JobSpec, or ``purpose`` and ``other_rubric``."""
        self.jobs += 1
        judge = self.lane
        judged = Judged(
            purpose=changes.pop("purpose", JudgePurpose.CLIP),
            job_id="p0-s1-0123456789ab",
            lane_id="scene-all-beats",
            key="",
            sha256=self.put_clip(clip),
            size_bytes=len(clip),
            rubric=self.put_rubric(asked),
            other_rubric=changes.pop("other_rubric", None),
        )
        judged = replace(judged, key=self.clips[judged.sha256])
        spec = JobSpec(
            job_id=f"judge-{self.jobs:012d}",
            sweep_id=SWEEP,
            lane_id=judge.id,
            lane_title=judge.title,
            task=Task.JUDGE,
            ordinal=self.jobs,
            prompt_index=0,
            prompt="a red ball",
            seed=1,
            weights=Weights.HUB,
            keyframe=None,
            lane_digest=judge.digest,
            host=HOST,
            device=DEVICE,
            width_px=96,
            height_px=64,
            num_frames=16,
            steps=0,
            fps=8.0,
            call=(),
            marks=(),
            limits=Limits(load_s=60, step_stall_s=30, attempt_s=90),
            rungs=(),
            weights_repo=judge.model.repo if judge.model else "",
            weights_revision=judge.model.revision if judge.model else "",
            judged=judged,
        )
        return replace(spec, **changes)

    def judgement(self, outcome: Outcome) -> Judgement:
        """What the attempt left in the depot."""
        artifact = outcome.artifact(ArtifactKind.JUDGEMENT)
        assert artifact is not None, outcome
        data = self.depot.objects[f"/{artifact.key}"]
        assert hashlib.sha256(data).hexdigest() == artifact.sha256
        return judgement.from_json(data, artifact.key)

    def manifest(self, outcome: Outcome) -> dict[str, Any]:
        artifact = outcome.artifact(ArtifactKind.MANIFEST)
        assert artifact is not None, outcome
        content: dict[str, Any] = json.loads(self.depot.objects[f"/{artifact.key}"])
        return content


def judge_file(folder: Path, judge_id: str, text: str) -> Path:
    """A judge's file of a test."""
    path = folder / f"{judge_id}.toml"
    path.write_text(f'id = "{judge_id}"\ntitle = "Test judge"\ntask = "judge"\nenv = "judge"\n{text}')
    return path


class ChatServer:
    """An OpenAI-compatible server that finds dark pictures black. ``answer_s``: how long it takes for an answer.

    ``tells_odds``: it gives log-probabilities. ``port``: 0 = any.
    """

    def __init__(self, *, answer_s: float = 0.0, tells_odds: bool = True, port: int = 0) -> None:
        self.asked = threading.Event()
        self.keys: set[str | None] = set()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send({"data": [{"id": "seer", "owned_by": "somebody"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.keys.add(self.headers.get("Authorization"))
                if not is_probe(body):
                    server.asked.set()
                    time.sleep(answer_s)
                p_yes = 0.9 if is_dark(body) else 0.2
                top = [{"token": word, "logprob": math.log(p)} for word, p in (("Yes", p_yes), ("No", 1 - p_yes))]
                logprobs = {"content": [{"top_logprobs": top}]} if tells_odds else None
                self._send(
                    {"choices": [{"message": {"content": "Yes." if p_yes > 0.5 else "No."}, "logprobs": logprobs}]}
                )

            def _send(self, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def is_probe(body: dict[str, Any]) -> bool:
    """What a judge asks before it has seen a clip."""
    return "empty black frame" in json.dumps(body)


def is_dark(body: dict[str, Any]) -> bool:
    parts = body["messages"][0]["content"]
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return ImageStat.Stat(picture.convert("L")).mean[0] < 128
