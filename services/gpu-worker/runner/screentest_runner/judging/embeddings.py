"""Tier b: one element per query, against counterfactuals, in every window. Any SigLIP 2, SigLIP or CLIP checkpoint.

A raw similarity says nothing of presence: every picture is somewhat like every text. So an element is compared with
texts that are not asked for, its own swaps and a fixed list. Formulas: scoring note 1.2 b.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from screentest_runner.failures import AttemptFailure
from screentest_runner.judging import checkpoint, media
from screentest_runner.judging.found import Found, Method, Progress, check_cancelled, rounded
from screentest_runner.judging.media import Media
from screentest_runner.judging.questions import Question
from screentest_runner.protocol import FailureClass

Floats = NDArray[np.float64]

MODEL_TYPES: Final = ("siglip", "siglip2", "clip")
TEMPLATES: Final = ("{}", "a film still of {}", "a frame showing {}")
# What no rubric asks for: a picture is like some of them, so their median is what "not there" looks like.
DISTRACTORS: Final = (
    "an empty black frame",
    "random noise",
    "abstract texture",
    "a plain grey surface",
    "a blurred picture",
    "a test card",
    "a landscape",
    "a city street",
    "a beach",
    "a forest",
    "an office",
    "a kitchen",
    "a portrait",
    "a crowd",
    "a dog",
    "a car",
    "a plate of food",
    "a sports match",
    "a page of text",
    "a company logo",
    "a map",
    "a flower",
    "an aeroplane",
    "a night sky",
)
# Windows of a story are two frames each: one would miss what moves, more cost forwards and tell little.
FRAMES_PER_WINDOW: Final = 2
# An embedding of a picture binds no subject to an act, knows no "not", and no motion.
LEFT_OUT: Final = frozenset({"relation", "negative", "camera"})
BATCH: Final = 16
MOST_KNOWN: Final = 4096  # phrases; a rubric has 200 of them with its swaps
# Where an answer is 0.5, and how many logits it takes to be sure: design choices until people's ratings replace them.
# What is absent lies at 0 and must say nearly nothing. With 2 and 2 it said 0.27, so black clips and other prompts got
# 3 to 5 of 10; the test judge sees what is there at 7 to 10.
MU, TAU = 4.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """mu: how many logits above the median of what is not asked for an element is as likely there as not. tau: logits
    from there to P = 0.73.
    """

    mu: float = MU
    tau: float = TAU

    def answers(self, element: Floats, counterfactuals: Floats) -> tuple[Floats, Floats]:
        """z and P(there) per window. element: (K,) logits. counterfactuals: (C, K)."""
        z = element - np.median(counterfactuals, axis=0)
        return z, 1 / (1 + np.exp(-(z - self.mu) / self.tau))


class EmbeddingJudge:
    """Holds one checkpoint. settings of its file: dtype, mu, tau."""

    tier: Literal["b"] = "b"
    method: Method = "embedding"
    longest_side_px = 512

    def __init__(self, lane: Mapping[str, Any]) -> None:
        settings = lane.get("settings", {})
        self._contrast = Contrast(mu=float(settings.get("mu", MU)), tau=float(settings.get("tau", TAU)))
        self._dtype = str(settings.get("dtype", "float32"))
        self._encoder: Encoder | None = None

    @property
    def badges(self) -> tuple[str, ...]:
        return () if self._encoder is None else checkpoint.badges(self._encoder.config)

    def prepare(self) -> dict[str, str]:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer  # noqa: F401  (so that Load finds them)

        return checkpoint.versions()

    def load(self, load: dict[str, Any], device: str) -> None:
        """Raises AttemptFailure(layout) for a folder that holds no such checkpoint."""
        self._encoder = Encoder(load, dtype=self._dtype, device=device)

    def answers(
        self, clip: Media, questions: Sequence[Question], windows: int, progress: Progress, cancelled: Event
    ) -> Found:
        """Raises AttemptFailure: bad_kwargs for a text that is too long for the model, cancelled."""
        if self._encoder is None:
            raise AttemptFailure(FailureClass.INFRASTRUCTURE, "the judge has no checkpoint: Load comes first")
        asked = [question for question in questions if question.kind not in LEFT_OUT]
        texts = _texts(asked)
        work = _Work(self._encoder, progress, cancelled)
        shown = media.windows(clip, windows, FRAMES_PER_WINDOW)
        logits = work.logits(texts, shown)
        index = {text: row for row, text in enumerate(texts)}
        answers, details = {}, {}
        for question in asked:
            others = logits[[index[text] for text in (*question.swaps, *DISTRACTORS)]]
            z, p = self._contrast.answers(logits[index[question.text]], others)
            answers[question.id] = [rounded(float(value)) for value in p]
            details[question.id] = {"contrast": [round(float(value), 2) for value in z]}
        return Found(
            method=self.method,
            answers=answers,
            details=details,
            calls=work.calls,
            badges=self.badges,
        )


def _texts(questions: Sequence[Question]) -> dict[str, str]:
    """Every text once, and whose it is, to name in errors."""
    texts: dict[str, str] = dict.fromkeys(DISTRACTORS, "a text of the judge itself")
    for question in questions:
        texts |= dict.fromkeys((question.text, *question.swaps), f"element {question.id!r}")
    return texts


class _Work:
    """One clip: counts forwards and tells of them."""

    def __init__(self, encoder: Encoder, progress: Progress, cancelled: Event) -> None:
        self.calls = 0
        self._encoder, self._progress, self._cancelled = encoder, progress, cancelled

    def logits(self, texts: Mapping[str, str], shown: Sequence[media.Window]) -> Floats:
        """(texts, windows): the mean over templates and over the frames of a window."""
        self._encoder.check_lengths(texts)
        phrases = [template.format(text) for text in texts for template in TEMPLATES]
        pictures = [frame for window in shown for frame in window.frames]
        new = self._encoder.unread(phrases)
        total = math.ceil(len(new) / BATCH) + math.ceil(len(pictures) / BATCH)
        for batch in _batches(new):
            self._encoder.read(batch)
            self._done(total)
        of_pictures = []
        for some in _batches(pictures):
            of_pictures.append(self._encoder.pictures(some))
            self._done(total)
        pairs = self._encoder.logits(self._encoder.texts(phrases), np.concatenate(of_pictures))
        return pairs.reshape(len(texts), len(TEMPLATES), len(shown), -1).mean(axis=(1, 3))

    def _done(self, total: int) -> None:
        self.calls += 1
        self._progress(self.calls, total)
        check_cancelled(self._cancelled)


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[begin : begin + BATCH] for begin in range(0, len(items), BATCH))


class Encoder:
    """The two towers of a checkpoint, and how near they say a text and a picture are.

    Texts are read once: the clips of a sweep are asked the same ones, and on a CPU they cost more than the pictures.
    """

    def __init__(self, load: dict[str, Any], *, dtype: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        folder = checkpoint.folder_of(load)
        self.config = checkpoint.config_of(folder)
        if self.config.model_type not in MODEL_TYPES:
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"{folder.name} holds a {self.config.model_type!r} model; an embedding judge is one of "
                f"{', '.join(MODEL_TYPES)}",
            )
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **checkpoint.OFFLINE)
        self._processor = AutoImageProcessor.from_pretrained(folder, **checkpoint.OFFLINE)
        self._model = checkpoint.model_of(AutoModel, folder, dtype=dtype, device=device)
        self._device = device
        self._limit = int(self.config.text_config.max_position_embeddings)
        self._is_clip = self.config.model_type == "clip"
        self._known: dict[str, Floats] = {}

    def check_lengths(self, texts: Mapping[str, str]) -> None:
        """Raises AttemptFailure(bad_kwargs): a text that is cut is another question, and nobody would see it."""
        for text, owner in texts.items():
            for template in TEMPLATES:
                count = len(self._tokenizer(template.format(text).lower())["input_ids"])
                if count > self._limit:
                    raise AttemptFailure(
                        FailureClass.BAD_KWARGS,
                        f"{owner}: {text!r} has {count} tokens as a query, this model reads {self._limit}; "
                        "shorten it in the rubric",
                    )

    def unread(self, phrases: Sequence[str]) -> list[str]:
        """Those that must be read first. Forgets all when there are more than one sweep's."""
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        return [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._known]

    def texts(self, phrases: Sequence[str]) -> Floats:
        """(n, d), of length 1, of phrases that have been read."""
        return np.stack([self._known[phrase] for phrase in phrases])

    def read(self, phrases: Sequence[str]) -> None:
        """In lower case: SigLIP 2 was trained on nothing else."""
        import torch

        # SigLIP reads its last position, so it wants all of them filled, as in training; CLIP finds its own end
        inputs = self._tokenizer(
            [phrase.lower() for phrase in phrases],
            padding=True if self._is_clip else "max_length",
            max_length=self._limit,
            return_tensors="pt",
        )
        keys = ("input_ids", "attention_mask") if self._is_clip else ("input_ids",)
        with torch.inference_mode():
            found = _unit(self._model.get_text_features(**{key: inputs[key].to(self._device) for key in keys}))
        self._known |= dict(zip(phrases, found, strict=True))

    def pictures(self, frames: Sequence[NDArray[np.uint8]]) -> Floats:
        """(n, d), of length 1. frames: (h, w, 3) uint8 each."""
        import torch
        from PIL import Image

        inputs = self._processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt")
        placed = {
            key: value.to(self._device, self._model.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        with torch.inference_mode():
            return _unit(self._model.get_image_features(**placed))

    def logits(self, texts: Floats, pictures: Floats) -> Floats:
        """(texts, pictures): as the model itself scales them."""
        scale = math.exp(float(self._model.logit_scale))
        bias = 0.0 if self._is_clip else float(self._model.logit_bias)
        logits = texts @ pictures.T * scale + bias
        if not np.isfinite(logits).all():
            raise AttemptFailure(FailureClass.NAN, "the judge's embeddings are not finite; try settings.dtype float32")
        return logits


def _unit(features: Any) -> Floats:
    """transformers 5 wraps the pooled features, earlier ones give them bare."""
    pooled = getattr(features, "pooler_output", features)
    return np.asarray((pooled / pooled.norm(dim=-1, keepdim=True)).float().cpu(), np.float64)
