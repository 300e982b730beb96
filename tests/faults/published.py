"""The case study's lanes as they were when they failed: lane files with a fix switched off, folders as a hub holds
them, and runners on a card that is too small or too slow. The product's own code is what runs.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from screentest.lanes import Content, load_lane
from screentest_runner.miniature import merged
from tests.faults.odd_runner import odd_python
from tests.integration.runner_process import LANES, RUNNER_SOURCE, env_python

BUILD = Path(__file__).parents[1] / "integration" / "miniatures_in_one_process.py"

# ---- runners: what happens to the pipeline between its checkpoint and the device


def with_pipe(change: str) -> str:
    """A change of the pipeline that was read from its folder; ``change``: lines of Python that know it as `pipe`."""
    body = "\n".join(f"    {line}" for line in change.strip().splitlines())
    return f"""
from screentest_runner.adapters.diffusers import DiffusersAdapter
whole = DiffusersAdapter.from_folder
def changed(self, folder):
    pipe = whole(self, folder)
{body}
    return pipe
DiffusersAdapter.from_folder = changed
"""


# An allocator that counts bytes of parameters, because a cpu has no memory of its own to run out of. The card is the
# `torch.device` that the runner was told; the text "cpu", which diffusers' own offloading says, is the host. Telemetry
# calls a cpu's memory unified, and this card has its own.
_DISCRETE = """
from dataclasses import replace
from screentest_runner.adapters.diffusers import DiffusersAdapter
load = DiffusersAdapter.load
DiffusersAdapter.load = lambda self, asked, device: load(self, replace(asked, unified_memory=False), device)
"""
_CARD = """
import torch
from accelerate.hooks import CpuOffload
from diffusers import DiffusionPipeline
models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
count = {name: sum(weight.numel() for weight in part.parameters()) for name, part in models.items()}
on_card = {}
def need(more=0):
    tried = sum(on_card.values()) + more
    if tried > capacity:
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {tried - capacity} bytes more than the {capacity} of this card"
        )
def take(part):
    on_card[id(part)] = sum(weight.nbytes for weight in part.parameters())
    need()
def to(*targets, **options):
    if isinstance(targets[0], torch.device):
        for part in models.values():
            take(part)
    return DiffusionPipeline.to(pipe, *targets, **options)
pipe.to = to
enter = CpuOffload.pre_forward
def pre_forward(hook, part, *arguments, **keywords):
    if hook.prev_module_hook is not None:
        on_card.pop(id(hook.prev_module_hook.model), None)
    take(part)
    return enter(hook, part, *arguments, **keywords)
CpuOffload.pre_forward = pre_forward
"""
# It holds the 16-bit pipeline, but not its text encoder beside the rest.
CARD_TOO_SMALL_TO_LOAD = _DISCRETE + with_pipe(_CARD + "capacity = 2 * (sum(count.values()) - count['text_encoder'])")
# It holds all of the weights, and then has less to spare than a denoising step needs.
CARD_TOO_SMALL_TO_DENOISE = _DISCRETE + with_pipe(
    _CARD
    + """
capacity = 2 * sum(count.values())
def activations(*_):
    need(count['text_encoder'])
pipe.transformer.register_forward_hook(activations)
"""
)
SLOW_CARD = with_pipe("""
import time
pipe.transformer.register_forward_pre_hook(lambda *_: time.sleep(0.3))
""")
# What a dtype too narrow for the weights ends in: infinity, and not-a-number in the step after it.
OVERFLOWS = with_pipe("pipe.transformer.proj_out.weight.data.fill_(3e38)")
# huggingface/transformers#43880: an embedding that nobody tied.
EMBEDS_NOTHING = with_pipe("pipe.text_encoder.get_input_embeddings().weight.data.zero_()")
DECODES_TO_BLACK = with_pipe("""
decode = pipe.vae.decode
pipe.vae.decode = lambda *latents, **options: (decode(*latents, **options)[0].fill_(-1.0),)
""")

# Deaf to SIGTERM and to `stop`, silent from its first step on, and with a grandchild in a session of its own that
# inherits the signal mask, the pipe and the device's lock. On a busy machine its time is up before the first step.
STUBBORN = """
import signal
from screentest_runner import loop
from screentest_runner.loop import Runner
from screentest_runner.progress import AttemptProgress
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
stop, serve = loop.Stop, Runner.serve
class Unheard:
    pass
loop.Stop = Unheard
Runner.serve = lambda self, request: None if isinstance(request, stop) else serve(self, request)
whole = Runner._open
def opened(self, request):
    if os.fork() == 0:
        os.setsid()
        daemon = os.fork()
        if daemon:
            open({pid_file!r}, "w").write(str(daemon))
            os._exit(0)
        while True:
            time.sleep(1)
    os.wait()
    whole(self, request)
Runner._open = opened
def silent(self, steps):
    while True:
        time.sleep(60)
AttemptProgress.step_done = silent
"""


def python_with(folder: Path, change: str) -> Path:
    """The diffusers env's interpreter, whose runner is changed; its packages lie where preflight looks for them."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").symlink_to(env_python("diffusers").parents[1] / "lib")
    return odd_python(folder / "bin", runner=change, env="diffusers")


# ---- lane files


def shipped(lane_id: str) -> Content:
    """The content of a lane file of the catalogue, free to be changed."""
    return copy.deepcopy(load_lane(LANES / f"{lane_id}.toml").content)


def changed(content: Content, lane_id: str, changes: Mapping[str, Any]) -> Content:
    """Another lane: ``changes`` go over its tables."""
    return {**merged(content, changes), "id": lane_id}


def without_ladder(content: Content) -> Content:
    return {**content, "ladder": content["ladder"][:1]}


def without_index_class(content: Content) -> Content:
    """Every component of the class that its checkpoint names, as a plain from_pretrained takes it."""
    parts = {
        name: {key: value for key, value in part.items() if key != "index_class"}
        | ({"class": part["index_class"]} if "index_class" in part else {})
        for name, part in content["components"].items()
    }
    return {**content, "components": parts}


def small(content: Content) -> Content:
    """A lane whose published architecture is its miniature's: hub weights of it fit on any machine."""
    parts = {}
    for name, part in content["components"].items():
        kept = {key: value for key, value in part.items() if key not in {"miniature", "config"}}
        parts[name] = {**kept, "config": merged(part.get("config", {}), part.get("miniature", {}))}
    sizes = content.get("miniature", {})
    return {
        **{key: value for key, value in content.items() if key != "miniature"},
        "device": "cpu",
        "components": parts,
        "defaults": {**content["defaults"], **sizes.get("defaults", {})},
        "call": {**content.get("call", {}), **sizes.get("call", {})},
    }


def counted(content: Content, folder: Path) -> Content:
    """The same lane with the parameters that its weights in ``folder`` have."""
    parts = {
        name: {**part, "params": parameters_of(folder / name)} if "params" in part else part
        for name, part in content["components"].items()
    }
    return {**content, "components": parts}


def parameters_of(part: Path) -> int:
    """Source: the header of safetensors files: its length in 8 bytes, then JSON."""
    total = 0
    for file in part.glob("*.safetensors"):
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        total += sum(math.prod(row["shape"]) for name, row in header.items() if name != "__metadata__")
    return total


def write_lane(folder: Path, content: Content) -> None:
    """As `<id>.toml`. The standard library reads TOML but does not write it."""
    text = "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in content.items())
    (folder / f"{content['id']}.toml").write_text(text)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


# ---- folders


def build(folder: Path, *contents: Content) -> None:
    """``folder / <lane id>``: what a hub repository of each lane holds."""
    result = subprocess.run(
        [env_python("diffusers"), BUILD, folder],
        input=json.dumps(contents),
        env={**os.environ, "PYTHONPATH": str(RUNNER_SOURCE), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
