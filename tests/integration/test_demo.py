"""The demo as a user starts it: real processes, the real model, real text."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedpipe_coordinator.config import load_job
from fedpipe_coordinator.demo.fleet import DemoJob, agent_toml, fleet, job_toml, memory_limit_mib
from fedpipe_coordinator.demo.usage import total_pss_bytes

MIB = 1024 * 1024
SHARED = Path(__file__).parents[3] / "shared" / "data"


def demo(out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "fedpipe_coordinator", "demo", "--out", str(out), "--format", "json", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr
    summary: dict[str, Any] = json.loads(ended.stdout)
    return summary


def agents_of(summary: dict[str, Any], round_: int) -> list[dict[str, Any]]:
    return [agent for agent in summary["rounds"][round_ - 1]["agents"] if "bits" in agent]


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_unlike_silos_learn_together(tmp_path: Path) -> None:
    summary = demo(tmp_path / "out", "--rounds", "2")
    plans = agents_of(summary, 1)
    assert len(plans) == 4
    assert len({json.dumps([plan["bits"], plan["batch_size"], plan["ranks"]]) for plan in plans}) >= 3
    assert len({plan["bits"] for plan in plans}) >= 2
    assert all(plan["reason"] for plan in plans)
    assert summary["final_metric"]["loss"] < summary["initial_metric"]["loss"]
    assert summary["demo"]["peak_memory_bytes"] < 5 * 1024 * MIB
    for name in ("summary.json", "rounds.jsonl", "report.html", "audit.jsonl", "adapter", "merged"):
        assert (tmp_path / "out" / name).exists()


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data sets at ../shared/data")
def test_a_model_and_data_of_the_users_own(tmp_path: Path) -> None:
    model, data = SHARED / "models" / "TinyStories-656K", SHARED / "e2e"
    arguments = ("--task", "causal-lm", "--agents", "2", "--rounds", "2")
    summary = demo(tmp_path / "out", "--model", str(model), "--data", str(data), *arguments)
    assert summary["initial_metric"]["loss"] > 6
    assert summary["final_metric"]["loss"] < 2.6


def test_every_silos_settings_are_its_own_and_load(tmp_path: Path) -> None:
    silos = fleet(6)
    assert len({silo.name for silo in silos}) == 6
    limits = [memory_limit_mib(silo, 450 * MIB, 90 * MIB) for silo in silos[:4]]
    assert limits == sorted(limits, reverse=True)
    assert len(set(limits)) == 4
    assert min(limits) >= 450 + 96
    text = agent_toml(silos[0], data=tmp_path / "a folder", memory_mib=None)
    assert "memory_mib" not in text
    assert "a folder" in text


@pytest.mark.parametrize("deadline", [None, 12.5])
def test_the_demos_job_loads_with_the_real_checks(tmp_path: Path, deadline: float | None) -> None:
    made = DemoJob("causal-lm", 3, 7, 'a "quoted" model', 64, 100, 1e-3, 4, deadline, 2)
    (tmp_path / "job.toml").write_text(job_toml(made))
    job = load_job(tmp_path / "job.toml")
    assert job.job.model == 'a "quoted" model'
    assert job.rounds.deadline_s == ("auto" if deadline is None else deadline)
    assert job.adapter.rank_ladder == (4,)
    assert job.export.merged


def test_processes_that_are_gone_take_no_memory() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert total_pss_bytes([ended.pid]) == 0
