"""Run in the judge environment: tiny checkpoints with random weights, as published ones are laid out. argv: a folder.

They prove shapes and refusals, and say nothing about scores. Last line of stdout: what a vision-language model answers
with and without its cache.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from screentest_runner.judging.media import Window
from screentest_runner.judging.vlm import VisionLanguageModel

SPECIAL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPELLINGS: Final = ("Yes", "yes", "ĠYes", "No", "no", "ĠNo")
TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Random weights say every word alike. These rows of the last layer larger, and questions get different answers.
LOUDNESS: Final = 400.0


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and yes and no as words of their own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for word in SPELLINGS:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=list(SPECIAL),
        chat_template=TEMPLATE,
    )


def make_qwen(folder: Path) -> None:
    tokenizer = bytes_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
            "pad_token_id": number(SPECIAL[0]),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for word in SPELLINGS:
            model.lm_head.weight[number(word)] *= LOUDNESS
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    images.save_pretrained(folder)


def make_clip(folder: Path) -> None:
    """CLIP finds the end of its text by the end token, which must have the highest number."""
    words = ["[PAD]", "[UNK]", "[BEGIN]", "a", "film", "still", "of", "frame", "showing", "red", "circle", "[END]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BEGIN] $A [END]", special_tokens=[("[BEGIN]", 2), ("[END]", 11)]
    )
    towers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 2, "eos_token_id": 11, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={**towers, **ends, "vocab_size": len(words), "max_position_embeddings": 24},
        vision_config={**towers, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    wrapped.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)


def make_bad_ones(folder: Path, sound: Path) -> None:
    """Of another kind, without a weight, without a chat template, with a weight that is no number."""
    BertConfig().save_pretrained(folder / "bert")
    _changed(sound, folder / "incomplete", lambda weights: weights.pop("text_model.final_layer_norm.weight"))
    _changed(sound, folder / "not-finite", lambda weights: weights["text_model.final_layer_norm.weight"].fill_(np.nan))
    shutil.copytree(folder / "qwen", folder / "base")
    (folder / "base" / "chat_template.jinja").unlink()


def _changed(sound: Path, folder: Path, change: Any) -> None:
    shutil.copytree(sound, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def answers_with_and_without_cache(folder: Path) -> dict[str, Any]:
    model = VisionLanguageModel({"lane": {"id": "qwen"}, "weights_dir": str(folder)}, dtype="float32", device="cpu")
    frames = np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), np.uint8)
    window = Window(begin_s=0.0, end_s=1.0, frames=frames, times_s=(0.0, 0.2, 0.4, 0.6))
    texts = ["Is a red circle visible?", "Is there no dog?", "Is it night?"]
    return {
        "cached": [asdict(mass) for mass in model.masses(window, texts)],
        "uncached": [asdict(model.mass_uncached(window, text)) for text in texts],
    }


def main() -> None:
    folder, sound = Path(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    make_qwen(folder / "qwen")
    make_clip(folder / "clip")
    make_bad_ones(folder, sound)
    print(json.dumps(answers_with_and_without_cache(folder / "qwen")))


if __name__ == "__main__":
    main()
