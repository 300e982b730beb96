"""Ways to break a good folder of weights, each as it happens in life. For tests of preflight and of the doctor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Break = Callable[[Path], None]


def denoiser(folder: Path) -> Path:
    return folder / ("unet" if (folder / "unet").is_dir() else "transformer")


def weights_file(part: Path) -> Path:
    return next(iter(sorted(part.glob("*.safetensors"))))


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def shard(part: Path) -> None:
    """The component's one file as two shards with their index, as a large checkpoint is published."""
    file = weights_file(part)
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    rows = {name: row for name, row in json.loads(data[8:start]).items() if name != "__metadata__"}
    names = sorted(rows)
    stem = file.name.removesuffix(".safetensors")
    homes: dict[str, str] = {}
    for number, chosen in enumerate((names[::2], names[1::2]), start=1):
        target = part / f"{stem}-{number:05}-of-00002.safetensors"
        write_tensors(
            target,
            {
                name: (rows[name]["dtype"], rows[name]["shape"], data[start + begin : start + end])
                for name in chosen
                for begin, end in [rows[name]["data_offsets"]]
            },
        )
        homes |= dict.fromkeys(chosen, target.name)
    file.unlink()
    index = {"metadata": {"total_size": len(data) - start}, "weight_map": homes}
    plain, dot, variant = stem.partition(".")
    (part / f"{plain}.safetensors.index{dot}{variant}.json").write_text(json.dumps(index))


def write_tensors(file: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """A safetensors file. tensors: name to (dtype, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


# ---- what breaks


def lose_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def lose_model_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def cut_model_index(folder: Path) -> None:
    file = folder / "model_index.json"
    file.write_bytes(file.read_bytes()[:-20])


def bare_transformer(folder: Path) -> None:
    """What Skywork publishes as SkyReels V1: the transformer at the root, and nothing else."""
    part = denoiser(folder)
    for file in part.iterdir():
        file.rename(folder / file.name)
    (folder / "model_index.json").unlink()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def another_pipeline(folder: Path) -> None:
    edit_json(folder / "model_index.json", _class_name="LTXPipeline")


def another_denoiser(folder: Path) -> None:
    edit_json(folder / "model_index.json", **{denoiser(folder).name: ["diffusers", "FluxTransformer2DModel"]})


def lose_component_of_index(folder: Path) -> None:
    edit_json(folder / "model_index.json", vae=[None, None])


def lose_shard(folder: Path) -> None:
    part = denoiser(folder)
    shard(part)
    next(iter(sorted(part.glob("*-00002-of-00002.safetensors")))).unlink()


def lose_shard_index(folder: Path) -> None:
    part = denoiser(folder)
    shard(part)
    next(iter(part.glob("*.index*.json"))).unlink()


def cut_shard(folder: Path) -> None:
    """A download that broke off."""
    part = denoiser(folder)
    shard(part)
    file = weights_file(part)
    file.write_bytes(file.read_bytes()[:-64])


def cut_weights(folder: Path) -> None:
    file = weights_file(folder / "vae")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_header(folder: Path) -> None:
    file = weights_file(folder / "vae")
    file.write_bytes(file.read_bytes()[:100])


def error_page_for_weights(folder: Path) -> None:
    weights_file(folder / "vae").write_bytes(b"<html><body>401 Unauthorized</body></html>")


def only_pickle(folder: Path) -> None:
    file = weights_file(denoiser(folder))
    file.rename(file.with_suffix(".bin"))


def only_gguf(folder: Path) -> None:
    file = weights_file(denoiser(folder))
    file.rename(file.with_suffix(".gguf"))


def lose_weights(folder: Path) -> None:
    weights_file(denoiser(folder)).unlink()


def lose_config(folder: Path) -> None:
    (denoiser(folder) / "config.json").unlink()


def cut_config(folder: Path) -> None:
    file = folder / "vae" / "config.json"
    file.write_bytes(file.read_bytes()[:-10])


def lose_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def lose_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


def empty_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"")


def lose_scheduler_config(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").unlink()


def lose_variant(folder: Path) -> None:
    """The plain files instead of the variant's."""
    for file in folder.rglob("*.fp16.safetensors"):
        file.rename(file.with_name(file.name.replace(".fp16", "")))


def text_to_video_denoiser(folder: Path) -> None:
    """Of 16 channels where the lane wants noise, mask and keyframe."""
    edit_json(denoiser(folder) / "config.json", in_channels=16)


def text_to_video_tensors(folder: Path) -> None:
    """The same, and config.json does not tell."""
    file = weights_file(denoiser(folder))
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    name = "patch_embedding.weight"
    header[name]["shape"][1] = 16
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])


# ---- what does not


def into_shards(folder: Path) -> None:
    shard(denoiser(folder))


def pickle_beside(folder: Path) -> None:
    (denoiser(folder) / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04K.")


def more_files(folder: Path) -> None:
    (folder / "README.md").write_text("# A model")
    (folder / "assets").mkdir()
    edit_json(folder / "model_index.json", safety_checker=[None, None], _name_or_path="somewhere")


def as_links(folder: Path) -> None:
    """As a hub cache keeps them."""
    blobs = folder.with_name(f"{folder.name}-blobs")
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        target = blobs / f"{number:04}"
        file.rename(target)
        file.symlink_to(target)


# ---- what only a load or a clip shows


def zero_text_embedding(folder: Path) -> None:
    """What early releases of transformers 5 made of UMT5."""
    _fill(weights_file(folder / "text_encoder"), ("shared.weight", "encoder.embed_tokens.weight"), b"\x00")


def not_a_number(folder: Path) -> None:
    """All bits set is not a number in every float dtype."""
    _fill(weights_file(denoiser(folder)), ("patch_embedding.weight",), b"\xff")


def _fill(file: Path, names: tuple[str, ...], byte: bytes) -> None:
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:start]))
    for name in names:
        if name in header:
            begin, end = header[name]["data_offsets"]
            data[start + begin : start + end] = byte * (end - begin)
    file.write_bytes(bytes(data))
