"""What preflight decides, from facts alone: no folder, no process, no device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screentest.lanes import Lane, lane_digest, load_lane
from screentest.measured import Experience, Measured, Shape
from screentest.records import DeviceFacts, JobSpec, Keyframe, Parameter, Process, Task, Verdict, Weights
from screentest_worker import admission, device_memory, pipeline_rules, preflight
from screentest_worker.device_memory import DeviceMemory
from screentest_worker.findings import Check, Problem
from screentest_worker.preflight import Facts
from screentest_worker.signature import Method, PipelineSignature, Taken
from screentest_worker.weights_folder import Part, WeightsFolder
from screentest_worker.weights_layout import Expectation

from .test_worker_decisions import spec as any_spec

LANES = Path(__file__).parents[2] / "deploy" / "lanes"
STUB, WAN, DF = (load_lane(LANES / f"{name}.toml") for name in ("stub", "wan2-1-t2v-1-3b", "skyreels-v2-df-14b-540p"))
GIB = 2**30
KEYFRAME = Keyframe(key="k", sha256="0" * 64, width_px=192, height_px=128, size_bytes=1)


def facts(lane: Lane = STUB, **changes: object) -> Facts:
    return replace(Facts(lane=lane, lane_digest=lane_digest(lane)), **changes)  # type: ignore[arg-type]


def spec(lane: Lane = STUB, **changes: object) -> JobSpec:
    """A job at the lane's own settings; `rungs` and digest are the lane's."""
    settings = lane.defaults_for("hub")
    own = {name: settings[name] for name in ("width_px", "height_px", "num_frames")}
    call = lane.pipeline_call("hub", {**settings, "prompt": "p"})
    parameters = tuple(Parameter(name=name, value=value) for name, value in call.items())
    known = {"lane_id": lane.id, "lane_digest": lane_digest(lane), "call": parameters}
    return any_spec(**{**own, **known, **changes})


def method(*names: str, required: tuple[str, ...] = ()) -> Method:
    taken = tuple(Taken(name=name, required=name in required) for name in names)
    return Method(parameters=taken, takes_any=False)


def signature_of(lane: Lane, *more: str, required: tuple[str, ...] = ()) -> PipelineSignature:
    """A class that takes what the lane passes."""
    keywords = lane.pipeline_call("hub", {**lane.defaults_for("hub"), "prompt": "p"})
    return PipelineSignature(
        class_name=lane.pipeline.class_name,
        library="diffusers 1.0",
        init=method(*lane.components, *lane.pipeline.init),
        call=method(*keywords, "generator", "output_type", *more, required=required),
        optional_components=(),
    )


class TestDecision:
    def test_job_of_this_lane_is_ok(self) -> None:
        assert preflight.decide(facts(), spec()).verdict is Verdict.OK

    @pytest.mark.parametrize(
        ("found", "job", "rung", "check", "word"),
        [
            (facts(), spec(lane_digest="e" * 64), 0, Check.LANE, "has changed"),
            (facts(), spec(lane_id="other"), 0, Check.LANE, "other"),
            (facts(missing_env="venvs/x/bin/python"), spec(), 0, Check.ENV, "venvs/x/bin/python"),
            (facts(), spec(task=Task.I2V), 0, Check.KEYFRAME, "keyframe"),
            (facts(), spec(task=Task.I2V, keyframe=replace(KEYFRAME, width_px=0)), 0, Check.KEYFRAME, "0x128"),
            (facts(), spec(num_frames=0), 0, Check.SHAPE, "0 frames"),
            (facts(), spec(fps=0.0), 0, Check.SHAPE, "at 0 fps"),
            (facts(WAN), spec(WAN, num_frames=50), 0, Check.SHAPE, "makes no 50 frames"),
            (facts(WAN), spec(WAN, width_px=1000), 0, Check.SHAPE, "1000x480 is no multiple of 16"),
            (facts(), spec(), 3, Check.RUNG, "no rung 3"),
            (facts(), spec(first_rung=7), None, Check.RUNG, "no rung 7"),
        ],
    )
    def test_impossible_job_is_refused_with_reason_and_fix(
        self, found: Facts, job: JobSpec, rung: int | None, check: Check, word: str
    ) -> None:
        decision = preflight.decide(found, job, rung)
        assert decision.verdict is Verdict.REFUSED
        assert [problem.check for problem in decision.problems] == [check]
        assert word in decision.reason
        assert decision.fix
        assert "\n" not in decision.reason + decision.fix

    def test_illegal_shape_is_told_with_the_nearest_legal_one(self) -> None:
        assert preflight.decide(facts(WAN), spec(WAN, num_frames=50)).fix == "ask for 49 frames"
        assert preflight.decide(facts(WAN), spec(WAN, width_px=1000)).fix == "ask for 992x480"

    def test_everything_wrong_is_told_at_once(self) -> None:
        found = facts(WAN, missing_env="python", signature=signature_of(WAN, "image", required=("image",)))
        decision = preflight.decide(found, spec(WAN, num_frames=50, task=Task.I2V), 9)
        assert [problem.check for problem in decision.problems] == [
            Check.ENV,
            Check.SIGNATURE,
            Check.SHAPE,
            Check.KEYFRAME,
            Check.RUNG,
        ]
        assert all(problem.reason in decision.detail for problem in decision.problems)

    def test_weights_of_a_folder_count_where_they_are_used(self) -> None:
        nowhere = WeightsFolder(path="models/wan", exists=False, root=Part(), parts={})
        found = facts(WAN, weights=nowhere, expected=Expectation.of_lane(WAN))
        decision = preflight.decide(found, spec(WAN, weights=Weights.HUB))
        assert decision.reason == "the weights are not there: no folder models/wan"
        assert decision.fix == "run `screentest models pull wan2-1-t2v-1-3b`"
        assert preflight.decide(facts(WAN), spec(WAN, weights=Weights.FULL_RANDOM)).verdict is Verdict.OK


class TestPipeline:
    def test_class_that_takes_what_the_lane_passes_is_ok(self) -> None:
        assert preflight.decide(facts(WAN, signature=signature_of(WAN)), spec(WAN)).verdict is Verdict.OK

    def test_unknown_keyword_is_named_with_its_nearest_match(self) -> None:
        job = spec(WAN)
        job = replace(job, call=(*job.call, Parameter(name="guidance", value=1.0)))
        decision = preflight.decide(facts(WAN, signature=signature_of(WAN)), job)
        assert decision.reason == "WanPipeline takes no 'guidance'"
        assert "did you mean 'guidance_scale'" in decision.fix

    def test_keyword_of_a_rung_counts_too(self) -> None:
        rungs = (*WAN.ladder, replace(WAN.ladder[-1], name="chunked", call={"decode_chunk_size": 2}))
        decision = preflight.decide(facts(replace(WAN, ladder=rungs), signature=signature_of(WAN)), spec(WAN))
        assert decision.reason == "WanPipeline takes no 'decode_chunk_size'"

    def test_attribute_of_a_component_wants_that_component(self) -> None:
        job = spec(WAN)
        job = replace(job, call=(*job.call, Parameter(name="guider.guidance_scale", value=1.0)))
        decision = preflight.decide(facts(WAN, signature=signature_of(WAN)), job)
        assert decision.reason == "WanPipeline has no component 'guider' for guider.guidance_scale"

    def test_class_that_takes_anything_takes_it(self) -> None:
        found = signature_of(WAN)
        found = replace(found, call=replace(found.call, takes_any=True))
        job = spec(WAN)
        job = replace(job, call=(*job.call, Parameter(name="anything", value=1.0)))
        assert preflight.decide(facts(WAN, signature=found), job).verdict is Verdict.OK

    def test_class_that_cannot_be_read_is_a_refusal(self) -> None:
        problem = Problem(check=Check.SIGNATURE, reason="diffusers 1.0 has no pipeline 'X'", fix="correct it")
        assert preflight.decide(facts(WAN, signature=problem), spec(WAN)).problems == (problem,)

    def test_more_frames_than_a_window_want_an_overlap(self) -> None:
        def reasons(**call: int) -> list[str]:
            return [problem.reason for problem in pipeline_rules.problems(DF, call)]

        assert reasons(num_frames=129, base_num_frames=97) == [
            "129 frames are more than one window of 97, and the call passes no overlap_history"
        ]
        assert reasons(num_frames=129, base_num_frames=97, overlap_history=17) == []
        assert reasons(num_frames=97, base_num_frames=97) == []


def experience(rung: str, peak_gib: float, **changes: object) -> Experience:
    held = dict.fromkeys(("encoding_prompt", "denoising", "decoding"), int(peak_gib * GIB))
    plain = Experience(
        lane_id=WAN.id,
        rung=rung,
        shape=Shape(width_px=832, height_px=480, num_frames=81),
        gpu="Card",
        steps=50,
        clips=1,
        step_s=(1.0,),
        held_bytes=held,
        tensor_bytes=held,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


MEASURED = Measured(shipped=(experience("resident", 26), experience("lean", 15), experience("offload", 5)))


def card(free_gib: float, ceiling_gib: float | None = None, **changes: object) -> DeviceMemory:
    ceiling = free_gib if ceiling_gib is None else ceiling_gib
    plain = DeviceMemory(unified=False, free_bytes=int(free_gib * GIB), ceiling_bytes=int(ceiling * GIB))
    return replace(plain, **changes)  # type: ignore[arg-type]


class TestMemory:
    def decide(self, memory: DeviceMemory | None, **changes: object) -> preflight.Decision:
        job = spec(WAN, **{"weights": Weights.HUB, **changes})
        return preflight.decide(facts(WAN, memory=memory, measured=MEASURED), job)

    @pytest.mark.parametrize(("gib", "rung"), [(80, 0), (24, 1), (16, 1), (12, 2)])
    def test_job_begins_where_it_fits(self, gib: float, rung: int) -> None:
        decision = self.decide(card(gib))
        assert decision.first_rung == rung
        assert decision.memory_free_bytes == gib * GIB
        assert decision.verdict is (Verdict.FIXED if rung else Verdict.OK)

    def test_memory_that_our_own_runners_hold_will_be_free(self) -> None:
        assert self.decide(card(2, ceiling_gib=80)).first_rung == 0

    def test_job_never_begins_above_where_it_was_planned(self) -> None:
        decision = self.decide(card(80), first_rung=2)
        assert (decision.first_rung, decision.verdict) == (2, Verdict.OK)

    def test_cap_bounds_what_is_free(self) -> None:
        decision = self.decide(card(140), memory_cap_gib=16.0)
        assert decision.first_rung == 1
        assert "(capped at 16 GiB)" in decision.detail

    def test_cap_counts_where_the_device_says_nothing(self) -> None:
        silent = DeviceMemory(unified=False, free_bytes=None, ceiling_bytes=None)
        assert self.decide(silent).first_rung is None
        assert self.decide(silent, memory_cap_gib=16.0).first_rung == 1

    def test_refusal_says_what_is_needed_what_is_free_and_what_would_fit(self) -> None:
        decision = self.decide(card(1, foreign=("ollama (pid 7) holds 5.0 GiB",)))
        assert decision.verdict is Verdict.REFUSED
        assert [problem.check for problem in decision.problems] == [Check.MEMORY]
        assert "1.0 GiB are free (ollama (pid 7) holds 5.0 GiB)" in decision.reason
        assert decision.memory_free_bytes == GIB
        assert decision.fix

    def test_miniatures_fit_anywhere(self) -> None:
        decision = self.decide(card(1), weights=Weights.MINIATURE)
        assert (decision.verdict, decision.first_rung) == (Verdict.OK, None)

    def test_unknown_memory_decides_nothing(self) -> None:
        assert self.decide(None).first_rung is None

    def test_illegal_shape_is_not_also_too_large(self) -> None:
        decision = self.decide(card(1), num_frames=50)
        assert [problem.check for problem in decision.problems] == [Check.SHAPE]

    def test_lane_that_nobody_measured_is_taken_to_fit_where_its_weights_do(self) -> None:
        a14b = load_lane(LANES / "wan2-2-t2v-a14b.toml")
        job = spec(a14b, weights=Weights.FULL_RANDOM)
        assert preflight.decide(facts(a14b, memory=card(80)), job).first_rung == 0
        decision = preflight.decide(facts(a14b, memory=card(24)), job)
        assert a14b.ladder[decision.first_rung or 0].group_offload is not None
        assert "24.0 GiB are free, less than the weights alone at 'resident'" in decision.detail

    def test_weights_alone_can_be_too_much(self) -> None:
        a14b = load_lane(LANES / "wan2-2-t2v-a14b.toml")
        job = spec(a14b, weights=Weights.FULL_RANDOM)
        decision = preflight.decide(facts(a14b, memory=card(8, unified=True)), job)
        assert decision.verdict is Verdict.REFUSED
        assert "the weights alone of Wan 2.2 T2V A14B do not fit, at no rung, 8.0 GiB are free" in decision.reason

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.floats(1, 140), st.floats(1, 140))
    def test_more_memory_never_means_a_lower_rung(self, one: float, other: float) -> None:
        small, large = (self.decide(card(gib)) for gib in sorted((one, other)))
        last = len(WAN.ladder)
        begins = [last if found.first_rung is None else found.first_rung for found in (small, large)]
        assert begins[0] >= begins[1]


class TestShortage:
    def test_rung_that_fits_now_is_no_shortage(self) -> None:
        assert admission.shortage(WAN, spec(WAN), 0, card(30), MEASURED) is None

    def test_what_is_free_now_counts_not_what_may_be(self) -> None:
        found = admission.shortage(WAN, spec(WAN), 0, card(20, ceiling_gib=80, foreign=("x holds 4.0 GiB",)), MEASURED)
        assert found is not None
        assert found.reason == "preflight: rung 'resident' needs 26.6 GiB, 20.0 GiB are free (x holds 4.0 GiB)"
        assert found.has_lower_rung

    def test_below_the_last_rung_there_is_none(self) -> None:
        last = len(WAN.ladder) - 1
        found = admission.shortage(WAN, spec(WAN), last, card(0.5), MEASURED)
        assert found is not None and not found.has_lower_rung

    def test_estimate_a_little_too_high_costs_no_rung(self) -> None:
        """Torch holds more than its tensors where it can; with the tensors' room alone it may still run."""
        clip = experience("resident", 26, tensor_bytes={"denoising": 20 * GIB})
        assert admission.shortage(WAN, spec(WAN), 0, card(22), Measured(shipped=(clip,))) is None

    def test_unknown_peak_or_memory_is_tried(self) -> None:
        assert admission.shortage(WAN, spec(WAN), 0, card(1), Measured()) is None
        silent = DeviceMemory(unified=False, free_bytes=None, ceiling_bytes=None)
        assert admission.shortage(WAN, spec(WAN), 0, silent, MEASURED) is None


MEMINFO = {"MemTotal": 128 * GIB, "MemFree": 41 * GIB, "MemAvailable": 103 * GIB}


def device(kind: str = "discrete", **changes: object) -> DeviceFacts:
    plain = DeviceFacts(host="h", device="gpu-0", lock_name="gpu", memory_kind=kind)
    return replace(plain, **changes)  # type: ignore[arg-type]


def tenant(held: int | None) -> Process:
    return Process(pid=7, start_ticks=1, command="/usr/bin/ollama serve", device_memory_bytes=held, foreign=True)


class TestDeviceMemory:
    def test_discrete_card_is_what_the_driver_says(self) -> None:
        found = device_memory.of_device(device(memory_total_bytes=24 * GIB, memory_free_bytes=3 * GIB), MEMINFO)
        assert (found.free_bytes, found.ceiling_bytes) == (3 * GIB, 24 * GIB)
        assert not found.unified

    @pytest.mark.parametrize("kind", ["unified", "unknown"])
    def test_a_cpu_shares_its_memory_whatever_is_said_of_it(self, kind: str) -> None:
        found = device_memory.of_device(device(kind, device="cpu-0", memory_free_bytes=9 * GIB), MEMINFO)
        assert (found.unified, found.free_bytes) == (True, 9 * GIB)

    def test_what_the_driver_keeps_for_itself_comes_back_from_nobody(self) -> None:
        free = int(23.4 * GIB)
        found = device_memory.of_device(device(memory_total_bytes=24 * GIB, memory_free_bytes=free), MEMINFO)
        assert found.ceiling_bytes == free

    def test_unified_memory_is_the_hosts_and_page_cache_counts_as_free(self) -> None:
        """NVML says not supported on GB10, and MemFree counts a file that was read as used."""
        found = device_memory.of_device(device("unified"), MEMINFO)
        assert (found.free_bytes, found.ceiling_bytes) == (103 * GIB, 128 * GIB)

    def test_what_foreign_processes_hold_stays_theirs(self) -> None:
        found = device_memory.of_device(
            device(memory_total_bytes=24 * GIB, memory_free_bytes=3 * GIB, foreign=(tenant(5 * GIB),)), MEMINFO
        )
        assert found.ceiling_bytes == 19 * GIB
        assert found.foreign == ("ollama (pid 7) holds 5.0 GiB",)

    def test_foreign_process_that_does_not_say_leaves_what_is_free(self) -> None:
        found = device_memory.of_device(
            device(memory_total_bytes=24 * GIB, memory_free_bytes=3 * GIB, foreign=(tenant(None),)), MEMINFO
        )
        assert found.ceiling_bytes == 3 * GIB
        assert found.foreign == ("ollama (pid 7) holds an unknown amount",)

    def test_silent_card_stays_unknown(self) -> None:
        found = device_memory.of_device(device(), MEMINFO)
        assert (found.free_bytes, found.ceiling_bytes) == (None, None)

    def test_meminfo_is_in_bytes(self) -> None:
        text = "MemTotal:       131072 kB\nMemAvailable:    1024 kB\nHugePages_Total:       0\n"
        assert device_memory.meminfo_bytes(text) == {"MemTotal": 131072 * 1024, "MemAvailable": 1024 * 1024}
