"""The parts run apart, as in production: every command by itself, every agent a process of its own."""

import json
from pathlib import Path

import pytest
from federation import Finished, Shared, fedpipe_agent

from fedpipe_profiles.device import DeviceProfile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_agents_that_came_before_the_coordinator_and_after_it_are_there(shared: Shared) -> None:
    agents = shared.federation.ask("agents", "--format", "json").json()["agents"]
    assert {"north", "south", "small"} <= agents.keys()
    for name in ("north", "south", "small"):
        profile = DeviceProfile.model_validate_json(json.dumps(agents[name]["profile"]))
        assert agents[name]["online"]
        assert profile.agent == name
        assert profile.threads() == 1
        assert profile.link is not None
        assert profile.link.uplink_source == "measured"
        assert profile.link.measured_bytes > 0
    assert "labels" in agents["north"]["profile"]["datasets"]


def test_an_agent_without_a_broker_says_so_once_and_goes_on_trying(shared: Shared) -> None:
    log = shared.federation.children["north"].log.read_text()
    assert log.count("cannot reach the broker at 127.0.0.1:") == 1
    assert f"127.0.0.1:{shared.federation.port}" in log
    assert log.index("cannot reach the broker") < log.index("connected to the broker")


def test_watching_shows_plans_rounds_and_agents_and_ends_with_the_folder(first_run: Finished) -> None:
    said = first_run.watch.said
    assert first_run.watch.out.strip() == str(first_run.folder)
    for part in ("north joined", "plans (deadline 100 s)", "memory pred/meas", "south trained"):
        assert part in said
    for number in (1, 2):
        assert f"round {number}: held-out loss" in said
    assert "the run is done" in said


def test_status_says_how_far_every_run_is(shared: Shared, first_run: Finished) -> None:
    reply = shared.federation.ask("status", "--format", "json").json()
    (entry,) = [run for run in reply["runs"] if run["run"] == first_run.name]
    assert (entry["phase"], entry["round"], entry["rounds"]) == ("done", 2, 2)
    assert entry["final_metric"] == first_run.summary["final_metric"]
    assert first_run.name in shared.federation.ask("status").said


def test_the_run_learned(first_run: Finished) -> None:
    first, last = first_run.summary["initial_metric"], first_run.summary["final_metric"]
    assert last["loss"] < first["loss"]
    assert last["accuracy"] > first["accuracy"]


def test_probe_prints_a_profile_and_needs_no_broker(shared: Shared) -> None:
    ended = fedpipe_agent("probe", "--format", "json")
    profile = DeviceProfile.model_validate_json(ended.out)
    assert ended.code == 0
    assert 32 in profile.supported_bits
    assert profile.rate("float32") is not None
    assert profile.limits.memory_bytes is None
    settings = shared.federation.folder / "small" / "agent.toml"
    limited = fedpipe_agent("probe", "--format", "json", "--config", settings)
    assert DeviceProfile.model_validate_json(limited.out).memory_limit_bytes() == 100 * 1024**2


def test_export_gives_the_adapter_and_the_merged_model(
    shared: Shared, first_run: Finished, second_run: Finished, tmp_path: Path
) -> None:
    ended = shared.federation.ask("export", first_run.name, "--to", tmp_path / "adapter")
    assert ended.code == 0, ended
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / name).read_bytes() == (first_run.folder / "adapter" / name).read_bytes()
    assert not (second_run.folder / "merged").exists()
    ended = shared.federation.ask("export", second_run.name, "--to", tmp_path / "merged", "--merge")
    assert ended.code == 0, ended
    weights = "model.safetensors"
    assert (tmp_path / "merged" / weights).read_bytes() == (first_run.folder / "merged" / weights).read_bytes()


def test_the_same_job_and_agents_end_in_the_same_bytes(first_run: Finished, second_run: Finished) -> None:
    def plans(finished: Finished) -> list[tuple[object, ...]]:
        return [
            (round_["round"], a["agent"], a["bits"], a["batch_size"], a["gradient_checkpointing"], a["ranks"])
            for round_ in finished.summary["rounds"]
            for a in round_["agents"]
        ]

    assert plans(first_run) == plans(second_run), "other measured rates gave another plan"
    assert first_run.summary["final_metric"] == second_run.summary["final_metric"]
    weights = Path("adapter") / "adapter_model.safetensors"
    assert (first_run.folder / weights).read_bytes() == (second_run.folder / weights).read_bytes()


def test_a_run_goes_on_without_an_agent_that_is_killed_in_a_round(shared: Shared, hard_run: Finished) -> None:
    kinds = [line["kind"] for line in shared.federation.audit(hard_run.name, agent="east")]
    assert kinds.index("evaluated") < kinds.index("offline") < kinds.index("gone")
    assert kinds.count("gone") == 1
    assert "accepted" not in kinds
    (gone,) = shared.federation.audit(hard_run.name, "gone", "east")
    assert gone["round"] == 1
    assert "going on without it" in gone["text"]
    entry = hard_run.rounds_of("east")[1]
    assert (entry["status"], entry["examples"], entry["up_bytes"]) == ("gone", 0, 0)
    assert "bits" not in hard_run.rounds_of("east").get(2, {})
    assert hard_run.rounds_of("south")[1]["status"] == "accepted"
    assert hard_run.rounds_of("south")[2]["status"] == "accepted"
    assert hard_run.summary["phase"] == "done"
    assert not shared.federation.ask("agents", "--format", "json").json()["agents"]["east"]["online"]
