"""`screentest up` with its judges: what needs no weights judges every clip, beside the sweep and never in its way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from screentest.errors import BadRequest
from screentest.judges import load_judge
from screentest.lanes import load_lane
from screentest.records import JobState
from screentest_ui import credentials, services
from screentest_ui.home import Home
from screentest_ui.services import Wanted
from tests.integration.test_stack import Stack, processes_of, wait_for
from tests.integration.worker_rig import REPOSITORY, VENVS

JUDGES = REPOSITORY / "deploy" / "judges"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JudgedStack(Stack):
    """A stub stack with the judges of the checkout."""

    def environment(self) -> dict[str, str]:
        return {**Stack.environment(self), "SCREENTEST_JUDGES_DIR": str(JUDGES)}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgedStack]:
    folder = tmp_path_factory.mktemp("judged")
    found = JudgedStack(folder=folder, home=Home(folder / "home"))
    try:
        found.up()
        yield found
    finally:
        found.run("down")
        assert processes_of(found.home) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_clip_is_judged_by_its_pixels(stack: JudgedStack) -> None:
    sweep_id = stack.submit(seeds=(1, 2))
    stack.ok("watch", sweep_id)
    with stack.client() as client:

        def is_judged() -> bool:
            counts = (scoring := client.get_sweep(sweep_id).scoring) and scoring.counts
            return bool(counts and counts.total == 2 and not counts.queued and not counts.running)

        wait_for(is_judged, 60)
        clips, judgements = client.list_jobs(sweep_id), client.list_judge_jobs(sweep_id)
    assert {job.spec.lane_id for job in clips} == {"stub"}  # judge jobs are no rows
    assert [job.state for job in judgements] == [JobState.COMPLETED] * 2
    assert all(job.judgement is not None and job.clip is None for job in judgements)


def test_judges_work_beside_the_gpu_unless_they_take_it() -> None:
    lane = load_lane(REPOSITORY / "deploy" / "lanes" / "stub.toml")
    pixels, qwen, remote = (load_judge(JUDGES / f"{name}.toml") for name in ("pixels", "qwen3-vl-8b", "endpoint"))
    wanted = Wanted(device="gpu-0", lanes=(lane,), judges=(pixels, qwen, remote), weights_dir=Path("weights"))
    assert [wanted.device_of(item) for item in wanted.workers] == ["gpu-0", "cpu-0", "gpu-0", "cpu-0"]
    assert wanted.devices == ("gpu-0", "cpu-0")
    alone = Wanted(device="cpu-0", lanes=(lane,), judges=(pixels, qwen), weights_dir=Path("weights"))
    assert {alone.device_of(item) for item in alone.workers} == {"cpu-0"}
    assert alone.devices == ("cpu-0",)


def test_only_what_needs_no_weights_is_started_unasked() -> None:
    place = services.installation({"SCREENTEST_ENVS_DIR": str(VENVS)})
    assert [judge.id for judge in services.choose_judges(place, ())] == ["pixels"]
    assert [judge.id for judge in services.choose_judges(place, ("endpoint",))] == ["endpoint"]
    with pytest.raises(BadRequest, match="no judge 'siglip'; there are endpoint, pixels"):
        services.choose_judges(place, ("siglip",))


def test_judge_has_a_user_that_may_touch_its_own_lane_alone() -> None:
    place = services.installation({})
    users = {user.name: user for user in credentials.nats_users("local", services.worker_ids(place))}
    user = users["worker-pixels"]
    assert user.publish is not None
    others = set(services.worker_ids(place)) - {"pixels"}
    tokens = {token for subject in (*user.publish, *(user.subscribe or ())) for token in subject.split(".")}
    assert {"events.*.pixels.*", "svc.depot.pixels"} <= set(user.publish)
    assert not tokens & others
    assert not any(token.endswith(f"_{other}") for token in tokens for other in others)  # consumers of the queue
