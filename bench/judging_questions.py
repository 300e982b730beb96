"""What tiers b and c cost per clip: seconds of an embedding judge on a CPU, and calls of a judge that is asked.

The checkpoint is SigLIP 2 base in its published size (256 px, 256,000 words) with random weights: what a forward
takes does not depend on them. The first clip of a sweep also pays for its texts, later ones do not. Runs itself in
the judge environment: `python bench/judging_questions.py measure` prints it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNNER_SOURCE = ROOT / "services" / "gpu-worker" / "runner"
RUBRIC = ROOT / "deploy" / "rubrics" / "architects-stillness.json"
WHOLE_CLIP_KINDS = ("camera", "negative")
CLIPS = 4


def measure(folder: Path) -> dict[str, Any]:
    from screentest_runner.judging import media, questions
    from screentest_runner.judging.embeddings import EmbeddingJudge

    _make_siglip2_base(folder / "siglip2-base")
    rubric = json.loads(RUBRIC.read_text(encoding="utf-8"))
    asked = questions.read(_plain(element) for element in rubric["elements"])
    windows = min(max(2 * len(rubric["beats"]), 8), 16)
    judge = EmbeddingJudge({"id": "bench", "settings": {"dtype": "float32"}})
    judge.prepare()
    begun = time.perf_counter()
    judge.load({"lane": {"id": "bench"}, "weights_dir": str(folder / "siglip2-base")}, "cpu")
    load_s = time.perf_counter() - begun
    clip = media.read(_moving_clip(folder / "clip.mp4"), longest_side_px=judge.longest_side_px)
    clips = [_timed(lambda: judge.answers(clip, asked, windows, lambda done, of: None, Event())) for _ in range(CLIPS)]
    return {
        "elements": len(asked),
        "windows": windows,
        "embedding, SigLIP 2 base on this CPU": {
            "load_s": round(load_s, 3),
            "first_clip": clips[0],
            "later_clips": clips[1:],
        },
        "calls of a language model": {mode: _calls(clip, asked, windows, mode) for mode in ("full", "cheap")},
    }


def _timed(answer: Any) -> dict[str, float]:
    """cpu_s: of all threads; a busy machine makes wall_s longer and leaves that."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    found = answer()
    return {
        "wall_s": round(time.perf_counter() - begun, 3),
        "cpu_s": round(time.process_time() - cpu_begun, 3),
        "forwards": found.calls,
    }


def _calls(clip: Any, asked: Any, windows: int, mode: Any) -> int:
    """Of a judge that is sure of everything: the fewest in cheap mode, always the same in full mode."""
    from screentest_runner.judging import answers

    def sure(_: Any, texts: Any) -> list[answers.Mass]:
        return [answers.Mass(yes=float(index % 2 == 0), no=float(index % 2)) for index, _ in enumerate(texts)]

    return answers.answer_all(
        sure,
        clip,
        asked,
        windows,
        mode=mode,
        method="logprobs",
        progress=lambda done, of: None,
        cancelled=Event(),
    ).calls


def _plain(element: dict[str, Any]) -> dict[str, Any]:
    known = ("id", "kind", "text", "question", "counter_question", "swaps", "beat")
    found = {key: element[key] for key in known if key in element}
    return {**found, "whole_clip": element["kind"] in WHOLE_CLIP_KINDS}


def _make_siglip2_base(folder: Path) -> None:
    """Sizes as in google/siglip2-base-patch16-256; words are letters, since only their number costs time."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    towers = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {**towers, "vocab_size": 256_000, "max_position_embeddings": 64, "pad_token_id": 0}
    ends = {"bos_token_id": None, "eos_token_id": None}
    vision = {**towers, "image_size": 256, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config={**text, **ends}, vision_config=vision)).save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 256, "width": 256}).save_pretrained(folder)


def _moving_clip(path: Path) -> Path:
    """48 frames of 832x480, about what a lane makes."""
    from tests.judging.scenes import clip, drawn_story, write_mp4

    return write_mp4(path, clip(drawn_story(1), "all-beats", frames=48, width_px=832, height_px=480), fps=16)


def main() -> None:
    if sys.argv[1:] == ["measure"]:
        with tempfile.TemporaryDirectory(prefix="screentest-bench-") as name:
            print(json.dumps(measure(Path(name))))
        return
    import recording

    child = subprocess.run(
        [ROOT / ".venvs" / "judge" / "bin" / "python", __file__, "measure"],
        env={**os.environ, "PYTHONPATH": f"{RUNNER_SOURCE}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        check=True,
    )
    recording.record("judging_questions", json.loads(child.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
