"""`screentest models`: the real command and the real huggingface_hub against a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from screentest.lanes import Lane, load_lane
from screentest_runner.protocol import Loaded
from screentest_ui import cli
from screentest_ui.weights_folder import RECORD
from screentest_ui.weights_lock import Pin, read
from tests.fake_hub import PIECE_BYTES, FakeHub, running

from .runner_process import LANES, RunnerProcess

WAN, SVD, MOCHI = "wan2-1-t2v-1-3b", "stable-video-diffusion-xt", "mochi-1-preview"
SKYREELS, STUB = "skyreels-v1-hunyuan-i2v", "stub"
WAN_REPO = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
SKYREELS_REPO, BASE_REPO = "Skywork/SkyReels-V1-Hunyuan-I2V", "hunyuanvideo-community/HunyuanVideo"
WAN_WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A checkout's deploy folder, a home, and the hub; runs the command as a person would."""

    folder: Path
    hub: FakeHub
    capture: pytest.CaptureFixture[str]

    @property
    def models(self) -> Path:
        return self.folder / "home" / "models"

    @property
    def lock_file(self) -> Path:
        return self.folder / "deploy" / "weights.lock.toml"

    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / "hf"),
            "SCREENTEST_HOME": str(self.folder / "home"),
            "SCREENTEST_LANES_DIR": str(self.folder / "deploy" / "lanes"),
        }

    def run(self, *arguments: str) -> tuple[int, str]:
        """(exit status, what was printed on both)"""
        status = cli.run(["models", *arguments])
        captured = self.capture.readouterr()
        return status, captured.out + captured.err

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The same in a process of its own, which may be killed."""
        code = "import sys; from screentest_ui.cli import run; sys.exit(run(sys.argv[1:]))"
        return subprocess.Popen(
            [sys.executable, "-c", code, "models", *arguments],
            env={**os.environ, **self.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def listed(self, lane_id: str) -> dict[str, Any]:
        status, text = self.run("list", "--json")
        assert status == 0
        return next(row for row in json.loads(text) if row["lane_id"] == lane_id)

    def files(self, lane_id: str) -> set[str]:
        folder = self.models / lane_id
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    lanes = tmp_path / "deploy" / "lanes"
    lanes.mkdir(parents=True)
    for lane_id in (WAN, SVD, MOCHI, SKYREELS, STUB):
        shutil.copy(LANES / f"{lane_id}.toml", lanes)
    with running() as hub:
        found = Desk(folder=tmp_path, hub=hub, capture=capsys)
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield found


def lane(lane_id: str) -> Lane:
    return load_lane(LANES / f"{lane_id}.toml")


def published(lane_id: str, *, variant: str | None = None) -> dict[str, bytes]:
    """What a repository in diffusers format holds of the lane's components; contents differ by path."""
    wanted = lane(lane_id)
    index: dict[str, Any] = {"_class_name": wanted.pipeline.class_name, "_diffusers_version": "0.30.0"}
    files: dict[str, bytes] = {}
    for name, part in wanted.components.items():
        index[name] = [part.library, part.index_class or part.class_name]
        files[f"{name}/config.json"] = json.dumps({"of": name}).encode()
        if part.params is None:
            files[f"{name}/spiece.model"] = f"vocabulary of {name}".encode()
        else:
            files |= {path: path.encode() for path in weights(name, part.library, variant)}
    return {"model_index.json": json.dumps(index).encode(), **files}


def weights(name: str, library: str, variant: str | None) -> list[str]:
    stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
    plain = f"{name}/{stem}.safetensors"
    return [plain] if variant is None else [plain, f"{name}/{stem}.{variant}.safetensors"]


DECOYS = {
    "README.md": b"a card",
    "wan_single_file.safetensors": b"everything once more",
    "assets/clip.mp4": b"a film",
    "transformer/diffusion_pytorch_model.bin": b"a pickle",
    "transformer/diffusion_pytorch_model.fp16.safetensors": b"a variant",
    "transformer/modeling_wan.py": b"import os",
    "text_encoder/model-00001-of-00002.safetensors": b"shards beside the whole",
    "text_encoder/model-00002-of-00002.safetensors": b"shards beside the whole",
    "text_encoder/model.safetensors.index.json": b"{}",
    "onnx/model.onnx": b"another runtime",
}


def test_pull_fetches_what_the_lane_needs_and_nothing_else(desk: Desk) -> None:
    needed = published(WAN)
    commit = desk.hub.add(WAN_REPO, {**needed, **DECOYS})
    status, said = desk.run("pull", WAN)
    assert status == 0, said
    assert set(desk.hub.fetched()) == set(needed)
    assert desk.files(WAN) == {*needed, "screentest-weights.json"}
    assert (desk.models / WAN / WAN_WEIGHTS).read_bytes() == needed[WAN_WEIGHTS]
    assert read(desk.lock_file) == (Pin(repo=WAN_REPO, revision="main", commit=commit),)
    row = desk.listed(WAN)
    assert (row["state"], row["pins"][0]["commit"], row["licence"]) == ("present", commit, "Apache-2.0")
    assert row["size_bytes"] >= sum(map(len, needed.values()))


def test_variant_is_fetched_alone_and_a_component_without_it_falls_back(desk: Desk) -> None:
    files = published(MOCHI, variant="bf16")
    del files["vae/diffusion_pytorch_model.bf16.safetensors"]
    desk.hub.add("genmo/mochi-1-preview", files)
    status, said = desk.run("pull", MOCHI)
    assert status == 0, said
    assert {path for path in desk.files(MOCHI) if path.endswith(".safetensors")} == {
        "transformer/diffusion_pytorch_model.bf16.safetensors",
        "text_encoder/model.bf16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_second_pull_fetches_nothing(desk: Desk) -> None:
    desk.hub.add(WAN_REPO, published(WAN))
    desk.run("pull", WAN)
    desk.hub.requests.clear()
    status, said = desk.run("pull", WAN)
    assert (status, desk.hub.fetched()) == (0, ["model_index.json"])
    assert "complete" in said


def test_cut_connection_is_taken_up_within_the_pull(desk: Desk) -> None:
    content = os.urandom(3 * PIECE_BYTES)
    desk.hub.add(WAN_REPO, {**published(WAN), WAN_WEIGHTS: content})
    desk.hub.cut_after_bytes, desk.hub.cuts = PIECE_BYTES + 4096, 1
    status, said = desk.run("pull", WAN)
    assert status == 0, said
    assert desk.hub.ranges() == [f"bytes={PIECE_BYTES}-"]
    assert (desk.models / WAN / WAN_WEIGHTS).read_bytes() == content


def test_killed_pull_is_partial_and_the_next_one_goes_on(desk: Desk) -> None:
    content = os.urandom(2 * PIECE_BYTES)
    desk.hub.add(WAN_REPO, {**published(WAN), WAN_WEIGHTS: content})
    desk.hub.go_on.clear()
    with desk.start("pull", WAN) as first:
        wait_until(lambda: sum(part.stat().st_size for part in desk.models.rglob("*.part")) == PIECE_BYTES)
        second_status, second_said = desk.run("pull", WAN)
        first.send_signal(signal.SIGKILL)
    assert second_status == 1
    assert "another `screentest models pull` is fetching wan2-1-t2v-1-3b" in second_said
    assert desk.listed(WAN)["state"] == "partial"
    assert not (desk.models / WAN).exists()
    assert desk.run("verify")[0] == 1
    desk.hub.go_on.set()
    desk.hub.requests.clear()
    status, said = desk.run("pull", WAN)
    assert status == 0, said
    assert desk.hub.ranges() == [f"bytes={PIECE_BYTES}-"]
    assert set(desk.hub.fetched()) == {"model_index.json", WAN_WEIGHTS}
    assert (desk.models / WAN / WAN_WEIGHTS).read_bytes() == content


def test_interrupted_pull_ends_at_once_and_says_that_nothing_is_lost(desk: Desk) -> None:
    desk.hub.add(WAN_REPO, {**published(WAN), WAN_WEIGHTS: os.urandom(2 * PIECE_BYTES)})
    desk.hub.go_on.clear()
    with desk.start("pull", WAN) as pull:
        wait_until(lambda: sum(part.stat().st_size for part in desk.models.rglob("*.part")) == PIECE_BYTES)
        pull.send_signal(signal.SIGINT)
        said = pull.communicate(timeout=50)[0]  # although the hub is silent for longer
    assert pull.returncode == 130, said
    assert "interrupted; what has come is kept" in said and "Traceback" not in said


def test_full_disk_is_refused_before_the_first_byte(desk: Desk) -> None:
    desk.hub.add(WAN_REPO, published(WAN), claimed_bytes={WAN_WEIGHTS: 2**60})
    status, said = desk.run("pull", WAN)
    assert status == 1
    assert "1073741824.0 GiB are still to be fetched for wan2-1-t2v-1-3b" in said
    assert f"{desk.models} has " in said and "--weights-dir" in said
    assert desk.hub.fetched() == ["model_index.json"]
    assert not desk.lock_file.exists()


@pytest.mark.parametrize(
    ("token", "accepted", "said"),
    [(None, True, "you are not logged in"), ("hf_right", False, "have not been let in yet"), ("hf_right", True, "")],
)
def test_gated_repository_says_where_to_accept_the_licence(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, token: str | None, accepted: bool, said: str
) -> None:
    desk.hub.add("stabilityai/stable-video-diffusion-img2vid-xt", published(SVD, variant="fp16"), gated=True)
    desk.hub.add(WAN_REPO, published(WAN))
    desk.hub.accepted = accepted
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    status, text = desk.run("pull", SVD, WAN)
    assert desk.listed(WAN)["state"] == "present"  # the other lane is not held up
    if not said:
        assert status == 0, text
        return
    assert status == 1
    assert said in text
    assert f"{desk.hub.url}/stabilityai/stable-video-diffusion-img2vid-xt" in text
    assert "hf auth login" in text and "HF_TOKEN" in text and "nothing was lost" in text


def test_new_commit_is_followed_only_when_asked(desk: Desk) -> None:
    old = desk.hub.add(WAN_REPO, published(WAN))
    desk.run("pull", WAN)
    new = desk.hub.repos[WAN_REPO].commit({**published(WAN), WAN_WEIGHTS: b"trained on"})
    weights_file = desk.models / WAN / WAN_WEIGHTS
    desk.run("pull", WAN)
    assert weights_file.read_bytes() == WAN_WEIGHTS.encode()
    desk.hub.requests.clear()
    status, said = desk.run("pull", WAN, "--update")
    assert status == 0
    assert f"moves from {old[:12]} to {new[:12]}" in said
    assert weights_file.read_bytes() == b"trained on"
    assert set(desk.hub.fetched()) == {"model_index.json", WAN_WEIGHTS}  # what did not change stays
    assert read(desk.lock_file)[0].commit == new


def test_colleagues_lock_file_decides_and_verify_names_who_is_behind(desk: Desk) -> None:
    old = desk.hub.add(WAN_REPO, published(WAN))
    new = desk.hub.repos[WAN_REPO].commit({**published(WAN), WAN_WEIGHTS: b"trained on"})
    desk.run("pull", WAN)
    desk.lock_file.write_text(desk.lock_file.read_text().replace(new, old))
    status, said = desk.run("verify", WAN)
    assert status == 1
    assert f"is at {new[:12]}, and weights.lock.toml says {old[:12]}" in said
    status, said = desk.run("pull", WAN)
    assert f"moves from {new[:12]} to {old[:12]}" in said
    assert desk.run("verify", WAN)[0] == 0


def test_verify_names_every_file_that_is_not_what_was_pulled(desk: Desk) -> None:
    desk.hub.add(WAN_REPO, published(WAN))
    desk.run("pull", WAN)
    folder = desk.models / WAN
    assert desk.run("verify") == (0, f"{WAN}: ok\n")
    flip_one_bit(folder / WAN_WEIGHTS)
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"short")
    (folder / "tokenizer/spiece.model").unlink()
    desk.hub.requests.clear()
    status, said = desk.run("verify", WAN)
    assert status == 1
    assert f"{WAN_WEIGHTS} is altered" in said
    assert "vae/diffusion_pytorch_model.safetensors is truncated: 5 of" in said
    assert "tokenizer/spiece.model is missing" in said
    assert desk.hub.requests == []  # without network
    assert desk.listed(WAN)["state"] == "partial"
    (folder / WAN_WEIGHTS).unlink()
    assert desk.run("pull", WAN)[0] == 0
    assert desk.run("verify", WAN)[0] == 0


@pytest.mark.parametrize(("suffix", "why"), [("bin", "pickle"), ("gguf", "GGUF")])
def test_repository_without_safetensors_is_refused_with_the_reason(desk: Desk, suffix: str, why: str) -> None:
    files = {path.replace(".safetensors", f".{suffix}"): content for path, content in published(WAN).items()}
    desk.hub.add(WAN_REPO, files)
    status, said = desk.run("pull", WAN)
    assert status == 1
    assert f"diffusion_pytorch_model.{suffix} ({why}" in said and "the folder 'transformer' of" in said
    assert not (desk.models / WAN).exists() and not desk.lock_file.exists()


def test_repository_that_is_no_pipeline_is_refused_with_what_it_holds(desk: Desk) -> None:
    desk.hub.add(WAN_REPO, {"config.json": b"{}", "wan-q4.gguf": b"quantised"})
    status, said = desk.run("pull", WAN)
    assert status == 1
    assert "has no model_index.json" in said and "wan-q4.gguf (GGUF" in said


def test_bare_transformer_and_its_base_become_one_ordinary_folder(desk: Desk) -> None:
    shards = {f"diffusion_pytorch_model-0000{number}-of-00002.safetensors": bytes([number]) for number in (1, 2)}
    index = {"diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {}}'}
    main = desk.hub.add(
        SKYREELS_REPO, {"config.json": b'{"in_channels": 32}', "comfyui.json": b"{}", **index, **shards}
    )
    base_files = published(SKYREELS)
    base_index = {**json.loads(base_files["model_index.json"]), "_class_name": "HunyuanVideoPipeline"}
    base_index |= {"transformer": ["diffusers", "SomeOtherTransformer"], "safety_checker": ["diffusers", "Foreign"]}
    base_files["model_index.json"] = json.dumps(base_index).encode()
    base = desk.hub.add(BASE_REPO, base_files)

    status, said = desk.run("pull", SKYREELS)
    assert status == 0, said
    folder = desk.models / SKYREELS
    wanted = lane(SKYREELS)
    assert json.loads((folder / "model_index.json").read_text()) == {
        "_class_name": "HunyuanSkyreelsImageToVideoPipeline",
        "_diffusers_version": "0.30.0",
        **{name: [part.library, part.index_class or part.class_name] for name, part in wanted.components.items()},
    }
    assert {path for path in desk.files(SKYREELS) if path.startswith("transformer/")} == {
        f"transformer/{name}" for name in ("config.json", *index, *shards)
    }
    assert json.loads((folder / "transformer/config.json").read_text()) == {"in_channels": 32}
    assert {pin["commit"] for pin in desk.listed(SKYREELS)["pins"]} == {main, base}
    assert desk.run("verify", SKYREELS)[0] == 0


@pytest.mark.slow
def test_pulled_assembly_is_loaded_like_any_checkpoint(desk: Desk) -> None:
    """Two miniature repositories, as published; the folder that a pull makes of them; the real runner."""
    wanted, cache = lane(SKYREELS), desk.folder / "miniatures"
    with RunnerProcess(wanted, desk.folder) as runner:
        runner.open()
        runner.load(cache=cache)
        runner.until(Loaded)
    (made,) = cache.iterdir()
    files = {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    root = {
        path.removeprefix("transformer/"): files.pop(path) for path in list(files) if path.startswith("transformer/")
    }
    index = {**json.loads(files["model_index.json"]), "_class_name": "HunyuanVideoPipeline"}
    desk.hub.add(SKYREELS_REPO, root)
    desk.hub.add(BASE_REPO, {**files, "model_index.json": json.dumps(index).encode()})
    status, said = desk.run("pull", SKYREELS)
    assert status == 0, said
    with RunnerProcess(wanted, desk.folder) as runner:
        runner.open()
        runner.load("hub", weights_dir=str(desk.models / SKYREELS))
        assert runner.until(Loaded)


def test_missing_shard_is_named(desk: Desk) -> None:
    files = published(WAN)
    del files[WAN_WEIGHTS]
    desk.hub.add(WAN_REPO, {**files, "transformer/diffusion_pytorch_model-00001-of-00002.safetensors": b"one"})
    status, said = desk.run("pull", WAN)
    assert status == 1
    assert "lacks shard 2 of 2" in said


def test_content_that_another_lane_has_is_not_fetched_again(desk: Desk) -> None:
    desk.hub.add(WAN_REPO, published(WAN))
    desk.run("pull", WAN)
    mochi = published(MOCHI, variant="bf16")
    mochi["text_encoder/model.bf16.safetensors"] = published(WAN)["text_encoder/model.safetensors"]
    desk.hub.add("genmo/mochi-1-preview", mochi)
    desk.hub.requests.clear()
    assert desk.run("pull", MOCHI)[0] == 0
    assert "text_encoder/model.bf16.safetensors" not in desk.hub.fetched()
    shared = desk.models / MOCHI / "text_encoder/model.bf16.safetensors"
    assert shared.samefile(desk.models / WAN / "text_encoder/model.safetensors")


def test_cache_of_the_hub_library_is_used(desk: Desk) -> None:
    """Who has run the model elsewhere has its files already."""
    files = published(WAN)
    desk.hub.add(WAN_REPO, files)
    blobs = desk.folder / "hf" / "hub" / f"models--{WAN_REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / hashlib.sha256(files[WAN_WEIGHTS]).hexdigest()).write_bytes(files[WAN_WEIGHTS])
    spoilt = "vae/diffusion_pytorch_model.safetensors"
    (blobs / hashlib.sha256(files[spoilt]).hexdigest()).write_bytes(bytes(len(files[spoilt])))
    with desk.start("pull", WAN) as pull:
        said, _ = pull.communicate(timeout=30)
    assert pull.returncode == 0, said
    assert WAN_WEIGHTS not in desk.hub.fetched()
    assert spoilt in desk.hub.fetched()  # its content was looked at
    assert desk.run("verify", WAN)[0] == 0


@pytest.mark.parametrize("renames", [1, 2])
def test_pull_that_was_killed_while_folders_changed_places_loses_nothing(desk: Desk, renames: int) -> None:
    desk.hub.add(WAN_REPO, published(WAN))
    desk.run("pull", WAN)
    folder, staging = desk.models / WAN, desk.models / ".pulling" / WAN
    staging.mkdir()
    if renames == 1:  # the old folder is out, the new one not in yet
        folder.rename(staging / "old")
    else:  # the new one is in, the old one with a person's file not cleared away yet
        shutil.copytree(folder, staging / "old")
        (staging / "old" / "notes.txt").write_text("mine")
    desk.hub.requests.clear()
    status, said = desk.run("pull", WAN)
    assert (status, desk.hub.fetched()) == (0, ["model_index.json"]), said
    assert desk.listed(WAN)["state"] == "present" and not staging.exists()
    if renames == 2:
        aside = desk.models / f"{WAN}.before-pull-1"
        assert [path.name for path in aside.rglob("*") if path.is_file()] == ["notes.txt"]


def test_folder_that_was_put_there_by_hand_is_taken_over_and_nothing_in_it_is_lost(desk: Desk) -> None:
    files = published(WAN)
    desk.hub.add(WAN_REPO, files)
    for path, content in {**files, WAN_WEIGHTS: b"something else", "notes.txt": b"mine"}.items():
        target = desk.models / WAN / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    assert desk.listed(WAN)["state"] == "unrecorded"
    desk.hub.requests.clear()
    status, said = desk.run("pull", WAN)
    assert status == 0
    assert set(desk.hub.fetched()) == {"model_index.json", WAN_WEIGHTS}
    assert desk.run("verify", WAN)[0] == 0
    aside = desk.models / f"{WAN}.before-pull-1"
    assert str(aside) in said
    assert {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()} == {"notes.txt", WAN_WEIGHTS}


def test_altered_download_is_not_accepted(desk: Desk) -> None:
    """A proxy that puts something of its own in, in the right length."""
    desk.hub.add(WAN_REPO, published(WAN))
    desk.hub.is_altering = True
    status, said = desk.run("pull", WAN)
    assert status == 1
    assert "arrived altered" in said
    assert not (desk.models / WAN).exists()
    desk.hub.is_altering = False
    assert desk.run("pull", WAN)[0] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/gone"), "has no repository Wan-AI/gone"),
        (('licence = "Apache-2.0"', 'revision = "v9"'), "has no revision 'v9'"),
        (("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "no/such/name"), "cannot be the name of a repository"),
    ],
)
def test_wrong_repository_or_revision_is_named(desk: Desk, change: tuple[str, str], said: str) -> None:
    desk.hub.add(WAN_REPO, published(WAN))
    lane_file = desk.folder / "deploy" / "lanes" / f"{WAN}.toml"
    lane_file.write_text(lane_file.read_text().replace(*change))
    status, text = desk.run("pull", WAN)
    assert (status, said in text) == (1, True), text


def test_hub_that_is_down_is_said_in_one_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    status, said = desk.run("pull", WAN)
    assert status == 1
    assert "http://127.0.0.1:9 cannot be reached" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pull",), "name the lanes to pull, or say --all"),
        (("pull", "wan"), "no lane 'wan'"),
        (("verify", "wan"), "no lane 'wan'"),
    ],
)
def test_wrong_lane_is_usage(desk: Desk, arguments: tuple[str, ...], said: str) -> None:
    status, text = desk.run(*arguments)
    assert (status, said in text) == (2, True), text


def test_lane_without_weights_is_no_lane_to_pull(desk: Desk) -> None:
    status, said = desk.run("pull", STUB)
    assert status == 1
    assert "has no published weights" in said


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def wait_until(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_judges_checkpoint_is_pulled_whole_and_without_pickle(desk: Desk) -> None:
    judges = desk.folder / "deploy" / "judges"
    judges.mkdir()
    shutil.copy(LANES.parent / "judges" / "siglip2-base.toml", judges)
    desk.hub.add(
        "google/siglip2-base-patch16-256",
        {
            "config.json": b"{}",
            "preprocessor_config.json": b"{}",
            "tokenizer.json": b"vocabulary",
            "model.safetensors": b"weights",
            "pytorch_model.bin": b"a pickle",
            "modeling.py": b"import os",
            "README.md": b"a card",
        },
    )
    status, text = desk.run("pull", "siglip2-base")
    assert status == 0, text
    wanted = {"config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"}
    assert desk.files("siglip2-base") == {*wanted, RECORD}
    assert desk.run("verify", "siglip2-base") == (0, "siglip2-base: ok\n")
    assert desk.listed("siglip2-base")["state"] == "present"
