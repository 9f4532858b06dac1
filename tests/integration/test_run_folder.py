"""What a run leaves: the files that the design lists, in its schema, usable without any code of this project."""

import json
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from federation import Finished, Shared, read_lines
from safetensors import safe_open

from fedpipe_data.examples import ClassificationExample, load_dataset
from fedpipe_data.source import DatasetSource

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # peft still asks transformers by the older name
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

SUMMARY = {"schema", "run", "job", "task", "initial_metric", "final_metric", "exports", "rounds"}
ROUND = {"round", "wall_s", "deadline_s", "metric", "truncation_tail", "agents"}
AGENT = {
    "agent": str,
    "bits": int,
    "batch_size": int,
    "gradient_checkpointing": bool,
    "ranks": dict,
    "trainable_parameters": int,
    "predicted_peak_bytes": int,
    "measured_peak_bytes": int,
    "predicted_round_s": float,
    "measured_round_s": float,
    "examples": int,
    "up_bytes": int,
    "down_bytes": int,
    "status": str,
}
LABELS = ["class0", "class1", "class2"]


def test_the_summary_has_the_documented_schema(first_run: Finished) -> None:
    summary = first_run.summary
    assert summary.keys() >= SUMMARY
    assert summary["schema"] == 1
    assert (summary["run"], summary["job"], summary["task"]) == (first_run.name, "words", "sequence-classification")
    assert {key: Path(path) for key, path in summary["exports"].items()} == {
        "adapter": first_run.folder / "adapter",
        "merged": first_run.folder / "merged",
    }
    assert [round_["round"] for round_ in summary["rounds"]] == [1, 2]
    for round_ in summary["rounds"]:
        assert round_.keys() >= ROUND
        assert 0 < round_["wall_s"] < round_["deadline_s"] == 100
        assert 0 <= round_["truncation_tail"] < 1
        assert [agent["agent"] for agent in round_["agents"]] == ["north", "south"]


def test_every_agent_of_every_round_is_told_of_in_full(first_run: Finished) -> None:
    sizes = _shapes(first_run.folder / "adapter")
    head = sum(rows * columns for name, (rows, columns) in sizes.items() if "lora_" not in name)
    for round_ in first_run.summary["rounds"]:
        for agent in round_["agents"]:
            assert {key: type(agent[key]) for key in AGENT} == AGENT
            trained = {f"base_model.model.{name}.lora_": rank for name, rank in agent["ranks"].items()}
            lengths = {prefix: sizes[f"{prefix}A.weight"][1] + sizes[f"{prefix}B.weight"][0] for prefix in trained}
            parameters = head + sum(rank * lengths[prefix] for prefix, rank in trained.items())
            assert agent["trainable_parameters"] == parameters
            assert 4 * parameters < agent["up_bytes"] < 4 * parameters + 20_000
            assert agent["down_bytes"] >= 4 * (head + sum(4 * length for length in lengths.values()))
            assert agent["measured_peak_bytes"] > 4 * _parameters(sizes)
            assert 0 < agent["measured_round_s"] <= round_["wall_s"]
            assert (agent["examples"], agent["batch_size"], agent["status"]) == (120, 4, "accepted")


def test_rounds_are_the_lines_of_their_file_and_end_in_the_final_metric(first_run: Finished) -> None:
    summary = first_run.summary
    assert read_lines(first_run.folder / "rounds.jsonl") == summary["rounds"]
    assert summary["rounds"][-1]["metric"] == summary["final_metric"]
    assert summary["rounds"][0]["metric"] != summary["initial_metric"]


def test_metrics_are_the_means_of_what_the_agents_said_weighted_by_examples(
    shared: Shared, first_run: Finished
) -> None:
    said = [line["data"] for line in shared.federation.audit(first_run.name, "evaluated")]
    summary = first_run.summary
    metrics = [summary["initial_metric"], *(round_["metric"] for round_ in summary["rounds"])]
    assert len(said) == 2 * len(metrics)
    for index, metric in enumerate(metrics):
        pair = said[2 * index : 2 * index + 2]
        examples = sum(part["examples"] for part in pair)
        assert pair[0]["examples"] != pair[1]["examples"]
        assert metric["examples"] == examples
        for name in ("loss", "accuracy"):
            assert metric[name] * examples == pytest.approx(sum(part[name] * part["examples"] for part in pair))


def test_the_audit_record_tells_every_decision_in_order(first_run: Finished) -> None:
    lines = read_lines(first_run.folder / "audit.jsonl")
    kinds = [line["kind"] for line in lines]
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)
    assert all(time.utcoffset() is not None for time in times)
    assert kinds[0] == "run-began"
    assert kinds[-1] == "run-done"
    assert {kind: kinds.count(kind) for kind in ("joined", "surveyed", "scored", "trained", "accepted")} == {
        "joined": 2,
        "surveyed": 2,
        "scored": 2,
        "trained": 4,
        "accepted": 4,
    }
    assert [line["round"] for line in lines if line["kind"] == "planned"] == [1, 2]
    assert all(len(line["data"]["sha256"]) == 64 for line in lines if line["kind"] in ("accepted", "aggregated"))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_page_that_needs_nothing_else(first_run: Finished) -> None:
    page = _Page()
    page.feed((first_run.folder / "report.html").read_text())
    assert not [link for link in page.links if not link.startswith("#")]
    for part in (first_run.name, "north", "south"):
        assert part in page.text


def test_adapter_and_merged_model_are_plain_and_say_the_same(shared: Shared, first_run: Finished) -> None:
    examples = _held_out(shared)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(shared.model, num_labels=len(LABELS))
    architecture, parameters = type(base), sum(p.numel() for p in base.parameters())
    names = set(base.state_dict())
    adapted = _logits(peft.PeftModel.from_pretrained(base, str(first_run.folder / "adapter")), shared.model, examples)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(first_run.folder / "merged")
    merged = _logits(model, first_run.folder / "merged", examples)

    assert len(examples) >= 64
    assert (merged - adapted).norm() <= 1e-4 * adapted.norm()
    assert (merged - adapted).abs().max() <= 1e-4 * adapted.abs().max()
    assert type(model) is architecture
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert set(model.state_dict()) == names
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert [model.config.id2label[index] for index in range(len(LABELS))] == LABELS


def test_the_merged_model_is_as_good_as_the_run_says(shared: Shared, first_run: Finished) -> None:
    examples = _held_out(shared)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(first_run.folder / "merged")
    logits = _logits(model, first_run.folder / "merged", examples)
    wanted = torch.tensor([LABELS.index(example.label) for example in examples])
    said = first_run.summary["final_metric"]
    assert said["examples"] == len(examples)
    assert said["accuracy"] == pytest.approx((logits.argmax(-1) == wanted).float().mean().item())
    assert said["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, wanted).item(), rel=1e-4)


def test_files_are_json_that_any_reader_takes(first_run: Finished) -> None:
    for name in ("summary.json", "adapter/adapter_config.json", "merged/config.json"):
        text = (first_run.folder / name).read_text()
        assert isinstance(json.loads(text, parse_constant=pytest.fail), dict)


def _held_out(shared: Shared) -> list[ClassificationExample]:
    """The held-out parts of both silos."""
    parts = [load_dataset(DatasetSource(path=path), "sequence-classification") for path in shared.silos.values()]
    return [example for part in parts for example in part.held_out]


def _logits(model: Any, tokenizer: Path, examples: list[ClassificationExample]) -> torch.Tensor:
    """Of every example by itself, (n, labels)."""
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    model.eval()
    with torch.no_grad():
        rows = [
            model(**words(example.text, truncation=True, max_length=16, return_tensors="pt")) for example in examples
        ]
    return torch.cat([row.logits for row in rows])


def _shapes(adapter: Path) -> dict[str, tuple[int, int]]:
    """Rows and columns of every tensor of an adapter; a vector has one column."""
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a mapping
    return {name: (shape[0], shape[1] if len(shape) > 1 else 1) for name, shape in shapes.items()}


def _parameters(sizes: dict[str, tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in sizes.values())
