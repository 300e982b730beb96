"""The keys of the depot: one prefix per sweep, and keyframes by their content."""

from __future__ import annotations

from screentest.records import ArtifactKind

_SUFFIX = {
    ArtifactKind.CLIP: "mp4",
    ArtifactKind.LOG: "log",
    ArtifactKind.MANIFEST: "json",
    ArtifactKind.JUDGEMENT: "json",
}
_FOLDER = {
    ArtifactKind.CLIP: "clips",
    ArtifactKind.LOG: "logs",
    ArtifactKind.MANIFEST: "manifests",
    ArtifactKind.JUDGEMENT: "judgements",
}
_CONTENT_TYPE = {
    ArtifactKind.CLIP: "video/mp4",
    ArtifactKind.LOG: "text/plain; charset=utf-8",
    ArtifactKind.MANIFEST: "application/json",
    ArtifactKind.KEYFRAME: "image/png",
    ArtifactKind.JUDGEMENT: "application/json",
    ArtifactKind.RUBRIC: "application/json",
}
REPORT_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "md": "text/markdown; charset=utf-8",
    "json": "application/json",
    "jpg": "image/jpeg",
    "png": "image/png",
    "mp4": "video/mp4",
}


def attempt_object(kind: ArtifactKind, sweep_id: str, lane_id: str, job_id: str, attempt: int, sha256: str) -> str:
    """Key of a clip, judgement, log or manifest. Its 16 hex of the content let a second put find the same."""
    return f"{sweep_id}/{_FOLDER[kind]}/{lane_id}-{job_id}-{attempt}-{sha256[:16]}.{_SUFFIX[kind]}"


def keyframe(sha256: str) -> str:
    return f"keyframes/{sha256}.png"


def rubric(sha256: str) -> str:
    return f"rubrics/{sha256}.json"


def report_file(sweep_id: str, name: str) -> str:
    """Key of one file of the published report: ``index.html``, ``report.json``, ``sheets/<job>.jpg``."""
    return f"{sweep_id}/report/{name}"


ARCHIVES = "archives/"


def sweep_archive(sweep_id: str) -> str:
    """Prefix of a sweep's archive. Not below the sweep's own: who deletes its clips keeps its history."""
    return f"{ARCHIVES}{sweep_id}/"


def archive_manifest(sweep_id: str, number: int) -> str:
    """Key of what is said about one part of the archive; the first one to write it wins."""
    return f"{sweep_archive(sweep_id)}{number:04d}.json"


def archive_part(sweep_id: str, number: int, sha256: str) -> str:
    """Key of the messages of one part; it carries 16 hex of the content."""
    return f"{sweep_archive(sweep_id)}{number:04d}-{sha256[:16]}.jsonl.gz"


def content_type(kind: ArtifactKind) -> str:
    return _CONTENT_TYPE[kind]


def report_content_type(name: str) -> str:
    return REPORT_CONTENT_TYPES.get(name.rsplit(".", 1)[-1], "application/octet-stream")
