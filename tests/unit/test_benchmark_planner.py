"""The planner's benchmark on small fleets of seeds of its own: every choice is near its bound, whatever binds."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import planner
from benchmarks.planner_fleet import FLEETS, fleet, job, llama_2_7b
from fedpipe_profiles.planning.planner import effort


def test_the_shapes_are_those_of_llama_2_7b() -> None:
    shape = llama_2_7b()
    assert len(shape.weights) == 224
    assert shape.weight_parameters + shape.other_parameters == 6_738_415_616


@pytest.mark.parametrize("kind", FLEETS)
def test_every_choice_is_near_its_bound(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large = effort(1000)
    monkeypatch.setattr("fedpipe_profiles.planning.planner.effort", lambda _: large)
    found = planner.measure(25, 907, kind, 600.0)
    assert found["planned"] >= 10
    assert found["worst_gap"] <= 0.005
    assert kind in found["bounds"] or kind == "mixed"


def test_the_devices_are_distinct_and_drawn_anew_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, same, other = (fleet(np.random.default_rng(seed), 5) for seed in (1, 1, 2))
    assert one == same != other
    assert len({device.profile.model_copy(update={"agent": ""}).model_dump_json() for device in one.values()}) == 5
    assert job(np.random.default_rng(1)).curves == job(np.random.default_rng(1)).curves
    planner.main(["--devices", "3", "--seed", "4", "--json", str(tmp_path / "found.json")])
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["devices"] == 3
    assert {"seconds", "auto_seconds", "worst_gap", "mean_gap", "peak_rss_mib"} <= written.keys()
    assert "worst_gap" in capsys.readouterr().out
