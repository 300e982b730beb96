"""Tier c in this process: a vision-language model of transformers, its first word's probabilities and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import partial
from threading import Event
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from screentest_runner.failures import AttemptFailure
from screentest_runner.judging import answers, checkpoint
from screentest_runner.judging.answers import Mass
from screentest_runner.judging.found import Found, Method, Progress, check_cancelled
from screentest_runner.judging.media import Media, Window
from screentest_runner.judging.questions import Question
from screentest_runner.protocol import FailureClass

# How far an answer may move when the pictures before the question come from the cache: bfloat16's own noise.
MOST_CACHE_CHANGE: Final = 0.05


class VlmJudge:
    """Holds one model. settings of its file: dtype, mode (see answers.mode_of), longest_side_px."""

    tier: Literal["c"] = "c"
    method: Method = "logprobs"

    def __init__(self, lane: Mapping[str, Any]) -> None:
        settings = lane.get("settings", {})
        self.longest_side_px = int(settings.get("longest_side_px", answers.LONGEST_SIDE_PX))
        self._dtype = str(settings.get("dtype", "bfloat16"))
        self._mode = answers.mode_of(lane)
        self._model: VisionLanguageModel | None = None

    @property
    def badges(self) -> tuple[str, ...]:
        return () if self._model is None else checkpoint.badges(self._model.config)

    def prepare(self) -> dict[str, str]:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer  # noqa: F401

        return checkpoint.versions()

    def load(self, load: dict[str, Any], device: str) -> None:
        """Raises AttemptFailure(layout) for a folder that holds no such model, or one that cannot be asked this way."""
        self._model = VisionLanguageModel(load, dtype=self._dtype, device=device)
        self._model.check_cache()

    def answers(
        self, clip: Media, questions: Sequence[Question], windows: int, progress: Progress, cancelled: Event
    ) -> Found:
        if self._model is None:
            raise AttemptFailure(FailureClass.INFRASTRUCTURE, "the judge has no model: Load comes first")
        return answers.answer_all(
            partial(self._model.masses, cancelled=cancelled),
            clip,
            questions,
            windows,
            mode=self._mode,
            method=self.method,
            progress=progress,
            cancelled=cancelled,
            badges=self.badges,
        )


class VisionLanguageModel:
    """A checkpoint that reads pictures and text. The pictures of a window are read once for all of its questions."""

    def __init__(self, load: dict[str, Any], *, dtype: str, device: str) -> None:
        from transformers import AutoModelForImageTextToText

        folder = checkpoint.folder_of(load)
        self.config = checkpoint.config_of(folder)
        self._processor = _image_processor_of(self.config, folder)
        self._tokenizer = self._processor.tokenizer
        self._device = device
        self._model = checkpoint.model_of(AutoModelForImageTextToText, folder, dtype=dtype, device=device)
        vocabulary = self._tokenizer.get_vocab()
        self._yes = sorted(number for token, number in vocabulary.items() if answers.is_yes(token))
        self._no = sorted(number for token, number in vocabulary.items() if answers.is_no(token))
        if not self._yes or not self._no:
            raise AttemptFailure(FailureClass.LAYOUT, f"{folder.name}: its vocabulary has no word yes or no")

    def masses(self, window: Window, texts: Sequence[str], *, cancelled: Event | None = None) -> list[Mass]:
        """One Mass per text, from one pass over the pictures and a short one per text."""
        import torch

        before, after = self._around(window)
        with torch.inference_mode():
            seen = self._model(**self._inputs(before, window), use_cache=True)
            return [self._asked(seen.past_key_values, text + after, cancelled) for text in map(_asked, texts)]

    def mass_uncached(self, window: Window, text: str) -> Mass:
        """The same in one pass: what the cache is checked against."""
        import torch

        before, after = self._around(window)
        with torch.inference_mode():
            return self._mass(self._model(**self._inputs(before + _asked(text) + after, window)).logits)

    def check_cache(self) -> None:
        """Raises AttemptFailure(layout) for a model that answers otherwise when it has read the pictures before."""
        grey = np.full((1, 64, 96, 3), 128, np.uint8)
        window = Window(begin_s=0.0, end_s=0.0, frames=grey, times_s=(0.0,))
        text = "Is the picture grey?"
        (cached,), plain = self.masses(window, [text]), self.mass_uncached(window, text)
        change = max(abs(cached.yes - plain.yes), abs(cached.no - plain.no))
        if not change <= MOST_CACHE_CHANGE:  # not-a-number is a change, too
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"a {self.config.model_type!r} model changes its answer by {change:.2f} when pictures come from its "
                "cache, so it cannot judge here; serve it elsewhere and use the judge 'endpoint'",
            )

    def _asked(self, cache: Any, text: str, cancelled: Event | None) -> Mass:
        if cancelled is not None:
            check_cancelled(cancelled)
        ids = self._tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self._device)
        # the model writes into the cache it is given, and the next question must not read this one
        known = copy.deepcopy(cache)
        # without a mask: with one, Qwen-VL counts places for all of it and not for the new part (transformers 5.23)
        return self._mass(self._model(input_ids=ids, past_key_values=known).logits)

    def _mass(self, logits: Any) -> Mass:
        p = logits[0, -1].float().softmax(dim=-1)
        return Mass(yes=float(p[self._yes].sum()), no=float(p[self._no].sum()))

    def _around(self, window: Window) -> tuple[str, str]:
        """The chat as the model's own template writes it, up to the question and from its end on."""
        place = "QUESTION-PLACE"
        pictures = [{"type": "image"} for _ in window.frames]
        content = [{"type": "text", "text": answers.shown_text(window)}, *pictures, {"type": "text", "text": place}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, after = text.split(place)
        return before, after

    def _inputs(self, text: str, window: Window) -> dict[str, Any]:
        from PIL import Image

        inputs = self._processor(text=[text], images=_pictures(window.frames, Image), return_tensors="pt")
        return {
            key: value.to(self._device, self._model.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }


def _asked(text: str) -> str:
    return answers.asked_text(text)


def _pictures(frames: NDArray[np.uint8], image: Any) -> list[Any]:
    return [image.fromarray(frame) for frame in frames]


def _image_processor_of(config: Any, folder: Any) -> Any:
    """The model's processor without its video half, which wants torchvision (transformers 5.23): frames go as images.

    Raises AttemptFailure(layout) for a model that has no such processor.
    """
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    known = PROCESSOR_MAPPING.get(type(config), None)
    if known is None:
        raise AttemptFailure(
            FailureClass.LAYOUT, f"{folder.name} holds a {config.model_type!r} model, which reads no pictures and text"
        )
    # the check of its parts takes an absent one for a wrong one
    images_only = type("ImagesOnly", (known,), {"check_argument_for_proper_class": lambda self, name, part: type(part)})
    tokenizer = AutoTokenizer.from_pretrained(folder, **checkpoint.OFFLINE)
    template = tokenizer.chat_template or _template_of(folder)
    if template is None:
        raise AttemptFailure(
            FailureClass.LAYOUT, f"{folder.name} has no chat template; take the instruct model of the family"
        )
    images = AutoImageProcessor.from_pretrained(folder, **checkpoint.OFFLINE)
    return images_only(image_processor=images, tokenizer=tokenizer, chat_template=template)


def _template_of(folder: Any) -> str | None:
    """Where a tokenizer has none: the processor's own file, as Qwen-VL checkpoints have it."""
    path = folder / "chat_template.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["chat_template"]) if path.is_file() else None
