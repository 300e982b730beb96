"""Makes tests/fixtures/tiny_siglip: a SigLIP of 0.22 M parameters that knows coloured shapes, trained from scratch.

Run in the judge environment, with the runner's source and the repository on PYTHONPATH (about 7 minutes of a core):
    .venvs/judge/bin/python -m tests.judging.train_tiny_siglip
Pictures and weights are drawn from one seed; how many steps fit into the time depends on the core.
It is saved as published checkpoints are and loads through the ordinary path, so it tests everything but the knowledge.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from screentest_runner.judging.checkpoint import TEST_MARKER
from screentest_runner.judging.embeddings import DISTRACTORS, TEMPLATES
from tests.judging.scenes import BACKGROUNDS, COLOURS, HELD_OUT, SEEN, SHAPES, Placed, Thing, drawn

FOLDER: Final = Path(__file__).parents[1] / "fixtures" / "tiny_siglip"
SEED: Final = 20261122
SIDE_PX, LENGTH, WIDTH = 32, 16, 64
BATCH, JUNK = 90, 6
SECONDS, RATE = 420.0, 1.5e-3
# A truth that is not quite one keeps what is absent and what nobody asks for equally far away, as in big models.
SMOOTHING: Final = 0.01
ASPECTS: Final = (1.0, 1.5, 16 / 9)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what is in it. words: the distractors that are true of it."""

    picture: np.ndarray
    things: tuple[Thing, ...] = ()
    background: str = ""
    words: tuple[str, ...] = ()


def texts_of(things: Sequence[Thing]) -> list[str]:
    """What may be asked: things, shapes, colours, backgrounds, and what is not there."""
    return [
        *map(str, things),
        *(f"a {shape}" for shape in SHAPES),
        *(f"a {colour} shape" for colour in COLOURS),
        *(f"a {background} background" for background in BACKGROUNDS),
        *DISTRACTORS,
    ]


def truths(scene: Scene) -> frozenset[str]:
    return frozenset(
        [
            *map(str, scene.things),
            *(f"a {thing.shape}" for thing in scene.things),
            *(f"a {thing.colour} shape" for thing in scene.things),
            *([f"a {scene.background} background"] if scene.background else []),
            *scene.words,
        ]
    )


def drawn_scene(random: np.random.Generator, things: Sequence[Thing], count: int | None = None) -> Scene:
    """One or two things as a processor leaves them of a square or wide picture: scaled to 32x32, somewhat noisy."""
    count = count or int(random.integers(1, 3))
    chosen = [things[i] for i in random.choice(len(things), count, replace=False)]
    background = str(random.choice(list(BACKGROUNDS)))
    squeeze = 1 / float(random.choice(ASPECTS))
    xs = random.permutation([random.uniform(0.2, 0.4), random.uniform(0.6, 0.8)]) if count == 2 else [None]
    placed = [
        Placed(
            thing=thing,
            x=float(random.uniform(0.22, 0.78) if x is None else x),
            y=float(random.uniform(0.24, 0.76)),
            radius=float(random.uniform(0.16, 0.32) if count == 1 else random.uniform(0.16, 0.24)),
            squeeze=squeeze,
        )
        for thing, x in zip(chosen, xs, strict=True)
    ]
    light = float(random.uniform(0.8, 1.1))
    picture = drawn(placed, background, width_px=SIDE_PX, height_px=SIDE_PX, light=light)
    noisy = picture + random.normal(0, random.uniform(0, 6), picture.shape)
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), tuple(chosen), background)


def drawn_junk(random: np.random.Generator) -> Scene:
    shape = (SIDE_PX, SIDE_PX, 3)
    match int(random.integers(3)):
        case 0:
            dim = random.integers(0, 8, shape, np.uint8)
            return Scene(dim, words=("an empty black frame",))
        case 1:
            level = random.uniform(60, 200)
            return Scene(np.full(shape, level, np.uint8), words=("a plain grey surface",))
        case _:
            noise = random.normal(128, random.uniform(30, 90), shape)
            return Scene(np.clip(noise, 0, 255).astype(np.uint8), words=("random noise", "abstract texture"))


# ---- the model and its files


def made_model() -> SiglipModel:
    towers = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config={
            **towers,
            "num_hidden_layers": 2,
            "vocab_size": len(vocabulary()),
            "max_position_embeddings": LENGTH,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
            "projection_size": WIDTH,
        },
        vision_config={**towers, "num_hidden_layers": 3, "image_size": SIDE_PX, "patch_size": 4},
    )
    setattr(config, TEST_MARKER, True)
    model = SiglipModel(config)
    model.logit_scale.data.fill_(float(np.log(10)))
    model.logit_bias.data.fill_(-4.0)
    return model


def vocabulary() -> dict[str, int]:
    phrases = [template.format(text) for text in (*texts_of(SEEN), *texts_of(HELD_OUT)) for template in TEMPLATES]
    words = sorted({word for phrase in phrases for word in phrase.lower().split()})
    return {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}


def made_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=LENGTH,
        model_input_names=["input_ids"],
    )


# ---- training


@dataclass(frozen=True, slots=True)
class Towers:
    """The model with what it needs to read texts and pictures."""

    model: SiglipModel
    tokenizer: PreTrainedTokenizerFast

    def logits(self, phrases: Sequence[str], pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """(pictures, phrases)."""
        ids = self.tokenizer(list(phrases), padding="max_length", max_length=LENGTH, return_tensors="pt")["input_ids"]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        texts = self.model.get_text_features(input_ids=ids).pooler_output
        images = self.model.get_image_features(pixel_values=pixels).pooler_output
        texts, images = texts / texts.norm(dim=-1, keepdim=True), images / images.norm(dim=-1, keepdim=True)
        return images @ texts.T * self.model.logit_scale.exp() + self.model.logit_bias


def train(towers: Towers, seconds: float) -> int:
    """Steps taken. The learning rate rises for 100 steps and falls with the time that is left."""
    random = np.random.default_rng(SEED)
    texts = texts_of(SEEN)
    optimizer = torch.optim.AdamW(towers.model.parameters(), lr=RATE, weight_decay=0.02)
    began, steps = time.process_time(), 0
    while (spent := time.process_time() - began) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (steps + 1) / 100) * max(0.02, 1 - spent / seconds)
        scenes = [drawn_scene(random, SEEN) for _ in range(BATCH)] + [drawn_junk(random) for _ in range(JUNK)]
        phrases = [str(random.choice(TEMPLATES)).format(text) for text in texts]
        loss = _loss(towers.logits(phrases, [scene.picture for scene in scenes]), _labels(scenes, texts))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(towers.model.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if steps % 100 == 0:
            print(f"{spent:.0f} s, step {steps}: loss {loss.item():.4f}", flush=True)
    return steps


def _labels(scenes: Sequence[Scene], texts: Sequence[str]) -> torch.Tensor:
    found = [truths(scene) for scene in scenes]
    return torch.tensor([[text in true for text in texts] for true in found], dtype=torch.float32)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sigmoid loss (arXiv 2303.15343, eq. 1) with exact labels; the few truths weigh as much as what is absent."""
    smooth = labels * (1 - 2 * SMOOTHING) + SMOOTHING
    weight = 1 + labels * 6
    return (torch.nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none") * weight).mean()


# ---- what it can do


def evaluate(towers: Towers, count: int = 500) -> dict[str, Any]:
    """On fresh pictures of one thing: how often the truth is found likelier than something else."""
    random = np.random.default_rng(SEED + 1)
    return {
        "pairs seen": _comparisons(towers, random, SEEN, count),
        "pairs held out": _comparisons(towers, random, HELD_OUT, count),
    }


@torch.inference_mode()
def _comparisons(towers: Towers, random: np.random.Generator, things: Sequence[Thing], count: int) -> dict[str, float]:
    scenes = [drawn_scene(random, things, 1) for _ in range(count)]
    every = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    logits = towers.logits([*map(str, every), *DISTRACTORS], [scene.picture for scene in scenes])
    wins: dict[str, list[bool]] = {"colour": [], "shape": [], "other": []}
    for row, scene in zip(logits.tolist(), scenes, strict=True):
        (true,) = scene.things
        at = dict(zip(every, row, strict=False))
        wins["colour"] += [at[true] > at[thing] for thing in every if _differ(thing, true) == "colour"]
        wins["shape"] += [at[true] > at[thing] for thing in every if _differ(thing, true) == "shape"]
        wins["other"] += [at[true] > at[thing] for thing in every if _differ(thing, true) == "both"]
    return {f"above another {name}": round(float(np.mean(won)), 4) for name, won in wins.items()}


def _differ(thing: Thing, other: Thing) -> str:
    if thing.colour == other.colour:
        return "" if thing.shape == other.shape else "shape"
    return "colour" if thing.shape == other.shape else "both"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one core's time")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    towers = Towers(made_model(), made_tokenizer())
    steps = train(towers, arguments.seconds)
    towers.model.eval().save_pretrained(arguments.folder)
    towers.tokenizer.save_pretrained(arguments.folder)
    SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}, resample=2).save_pretrained(arguments.folder)
    found = {
        "steps": steps,
        "core_seconds": arguments.seconds,
        "parameters": sum(weight.numel() for weight in towers.model.parameters()),
        **evaluate(towers),
    }
    (arguments.folder / "eval.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
