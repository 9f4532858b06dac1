"""An update that arrives a round late, with real processes: counted once with its weight, or declined with the reason.

Two federations go through it side by side, for most of the time is waiting: one takes late updates, one does not.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from federation import read_lines
from mosquitto_support import mosquitto_or_skip

from benchmarks.echo_trainer import model_name
from benchmarks.fleet import Fleet, FleetSettings, JobSize
from benchmarks.launch import Seams

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
STEADY, SLOW = "agent-1", "agent-2"
LIMIT_S = 120.0
WEIGHT = 0.5
JOB = JobSize(model_name(8, 1024, 1024), rounds=3, rank=8, min_agents=1, deadline_s=60.0)
UPLINK_MBIT = 1
"""Of the slow agent: its update of half a MiB takes some four seconds."""


@dataclass
class Scene:
    """A fleet of two agents with its run."""

    fleet: Fleet
    late_weight: float
    run: str = ""
    stopped: list[int] = field(default_factory=list)

    def begin(self) -> None:
        settings = self.fleet.folder / SLOW / "agent.toml"
        settings.write_text(settings.read_text().replace("[limits]\n", f"[limits]\nuplink_mbit = {UPLINK_MBIT}\n"))
        job = self.fleet.write_job(JOB)
        job.write_text(job.read_text().replace("[rounds]\n", f"[rounds]\nlate_weight = {self.late_weight}\n"))
        self.fleet.start()
        self.run = self.fleet.submit(job)

    def status(self) -> dict[str, Any]:
        return self.fleet.status(self.run)

    def audit(self, *kinds: str) -> list[dict[str, Any]]:
        return [line for line in read_lines(self.fleet.run_folder(self.run) / "audit.jsonl") if line["kind"] in kinds]

    def rounds(self) -> list[dict[str, Any]]:
        return read_lines(self.fleet.run_folder(self.run) / "rounds.jsonl")

    def log(self, name: str) -> str:
        return (self.fleet.folder / "logs" / f"{name}.log").read_text()

    # --- what is done to it ---------------------------------------------------------------------------------------

    def is_uploading(self) -> bool:
        agents = self.status().get("agents", {})
        assert agents.get(SLOW) != "accepted", "its update came too fast to be late"
        parts = list((self.fleet.home / "blobs").glob("*.part"))
        return bool(parts) and agents == {STEADY: "accepted", SLOW: "offered"}

    def cut_off(self) -> None:
        """The slow agent loses its power in its upload, and the next round is held open by the other's trainer."""
        self.fleet.kill(SLOW)
        self.stopped = [self.fleet.trainer_pids()[STEADY]]
        os.kill(self.stopped[0], signal.SIGSTOP)

    def is_in_round_2(self) -> bool:
        status = self.status()
        return (status.get("phase"), status.get("round")) == ("training", 2)

    def go_on(self) -> None:
        while self.stopped:
            os.kill(self.stopped.pop(), signal.SIGCONT)

    # --- what it came to ------------------------------------------------------------------------------------------

    def said(self, kind: str) -> list[dict[str, Any]]:
        """What the coordinator published and aggregated, as written down in its process."""
        lines = (self.fleet.folder / "coordinator-coordinator.said").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["type"] == kind]

    def offered(self) -> str:
        """The name of the slow agent's update of the first round."""
        (name,) = {ack["sha256"] for ack in self.said("ack") if (ack["agent"], ack["round"]) == (SLOW, 1)}
        return str(name)

    def aggregations_with(self, sha256: str) -> list[int]:
        """The rounds whose aggregation used an update, once for each time that it was used."""
        return [line["round"] for line in self.said("aggregation") for _, name in line["updates"] if name == sha256]


def _until(
    what: str, scenes: Sequence[Scene], condition: Callable[[Scene], bool], then: Callable[[Scene], None]
) -> None:
    """Wait until a condition holds in each scene, and then at once do something there."""
    waiting, deadline = list(scenes), time.monotonic() + LIMIT_S
    while waiting:
        for scene in [scene for scene in waiting if condition(scene)]:
            then(scene)
            waiting.remove(scene)
        if waiting and time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {LIMIT_S:.0f} s\n{waiting[0].status()}\n{waiting[0].fleet.last_words()}")
        time.sleep(0.02)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[float, Scene]]:
    """Both runs when they are over."""
    mosquitto_or_skip()
    with ExitStack() as stack:
        found = []
        for late_weight in (WEIGHT, 0.0):
            folder: Path = tmp_path_factory.mktemp("late")
            seams = Seams(folder=str(folder), hooks=True)
            scene = Scene(stack.enter_context(Fleet(folder, FleetSettings(2, chunk_kib=16), seams)), late_weight)
            stack.callback(scene.go_on)
            scene.begin()
            found.append(scene)
            _until("the slow agent uploads", [scene], Scene.is_uploading, Scene.cut_off)
        _until("round 2", found, Scene.is_in_round_2, _restarted)
        _until("an answer", found, lambda scene: bool(scene.audit("late-accepted", "late")), Scene.go_on)
        _until("the end", found, lambda scene: scene.fleet.summary_phase(scene.run) == "done", lambda _: None)
        yield {scene.late_weight: scene for scene in found}


def _restarted(scene: Scene) -> None:
    assert scene.fleet.revive() == [SLOW]


def test_a_late_update_is_acknowledged_once_it_is_here_and_aggregated_once(scenes: dict[float, Scene]) -> None:
    scene = scenes[WEIGHT]
    sha256 = scene.offered()
    assert {ack["accepted"] for ack in scene.said("ack") if ack["sha256"] == sha256} == {True}
    assert scene.aggregations_with(sha256) == [2]
    assert f"update {sha256[:12]} of round 1 was taken" in scene.log(SLOW)


def test_a_late_update_is_in_the_records_of_both_rounds(scenes: dict[float, Scene]) -> None:
    scene = scenes[WEIGHT]
    (offered,), (accepted,) = scene.audit("late-offered"), scene.audit("late-accepted")
    assert (offered["agent"], offered["data"]) == (SLOW, {"round": 1})
    assert (accepted["agent"], accepted["round"]) == (SLOW, 2)
    assert {"sha256": scene.offered(), "round": 1, "weight": WEIGHT}.items() <= accepted["data"].items()
    assert accepted["data"]["bytes"] > 0
    first, second, third = scene.rounds()
    assert {agent["agent"]: agent["status"] for agent in first["agents"]} == {STEADY: "accepted", SLOW: "late"}
    examples = next(agent["examples"] for agent in first["agents"] if agent["agent"] == SLOW)
    assert second["late"] == [{"agent": SLOW, "round": 1, "examples": examples, "weight": WEIGHT}]
    assert (first["late"], third["late"]) == ([], [])


def test_where_late_updates_weigh_nothing_one_is_declined_with_the_reason(scenes: dict[float, Scene]) -> None:
    scene = scenes[0.0]
    sha256 = scene.offered()
    assert {ack["accepted"] for ack in scene.said("ack") if ack["sha256"] == sha256} == {False}
    assert scene.aggregations_with(sha256) == []
    assert not scene.audit("late-offered", "late-accepted")
    assert "rounds.late_weight is 0" in scene.audit("late")[0]["text"]
    # What it was told while it was away comes first.
    assert f"update {sha256[:12]} of round 1 was not taken: round 1 went on without it: {SLOW} is" in scene.log(SLOW)
    assert [agent["status"] for agent in scene.rounds()[0]["agents"]] == ["accepted", "gone"]
    assert all(round_["late"] == [] for round_ in scene.rounds())


def test_the_slow_agent_takes_part_again_and_nobody_stumbles(scenes: dict[float, Scene]) -> None:
    for scene in scenes.values():
        assert {agent["agent"] for agent in scene.rounds()[2]["agents"] if agent["status"] == "accepted"} == {
            STEADY,
            SLOW,
        }
        for name in ("coordinator", STEADY, SLOW):
            assert "Traceback" not in scene.log(name)
