"""The central benchmark on a tiny model: it learns, repeats itself, and compares with what a run's summary says."""

import argparse
import json
from pathlib import Path

import pytest
from tiny_models import make_tiny_model, write_classification
from trainer_support import LABELS, FreeMeter

from benchmarks.central import Federated, Pool, Settings, figures, read_summary, run, train_centrally
from fedpipe_coordinator.demo.command import demo_model
from fedpipe_data.examples import load_dataset
from fedpipe_data.source import DatasetSource

SETTINGS = Settings(rank=4, learning_rate=0.01, sequence_length=16)


def _pool(folder: Path) -> Pool:
    data = load_dataset(
        DatasetSource(path=write_classification(folder / "d.jsonl", rows=400)), "sequence-classification"
    )
    return Pool(data.train, data.held_out, LABELS)


def test_it_learns_trains_as_much_as_asked_and_repeats_itself(tmp_path: Path) -> None:
    model, data = make_tiny_model(tmp_path / "model", "bert"), _pool(tmp_path)
    first, second = (train_centrally(model, data, SETTINGS, 1200, FreeMeter()) for _ in range(2))
    assert (first.examples, first.steps) == (1200, 75)
    assert first.after.examples == len(data.held_out)
    assert first.after.loss < 0.8 * first.before.loss
    assert first.after == second.after
    table = figures(first, SETTINGS, Federated(2, 1200, {"accuracy": 0.5, "loss": 1.0}, None, {}))
    assert table.keys() >= {"accuracy", "loss", "examples", "federated_accuracy", "ratio"}
    assert table["ratio"] * table["accuracy"] == pytest.approx(0.5)


def test_a_summary_counts_what_was_aggregated_only(tmp_path: Path) -> None:
    def entry(agent: str, examples: int, status: str = "accepted") -> dict[str, object]:
        return {"agent": agent, "examples": examples, "status": status}

    summary = {
        "phase": "done",
        "model": "m",
        "final_metric": {"accuracy": 0.5, "loss": 1.0},
        "exports": {"adapter": "a", "merged": None},
        "settings": {},
        "rounds": [
            {"agents": [entry("a", 100), entry("b", 50)]},
            {"agents": [entry("a", 100), entry("b", 40, "failed"), {"agent": "c", "status": "idle"}]},
        ],
    }
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary))
    found = read_summary(path, "m")
    assert (found.agents, found.examples, found.merged) == (3, 250, None)
    with pytest.raises(SystemExit, match="not a finished run"):
        read_summary(path, "another model")


def test_without_a_number_of_examples_it_says_what_to_give() -> None:
    assert Path(demo_model()).is_dir()
    given = argparse.Namespace(summary=None, examples=None, rank=8, seed=None)
    with pytest.raises(SystemExit, match="--summary of a run of the demo"):
        run(given)
