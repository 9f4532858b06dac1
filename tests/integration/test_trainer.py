"""The trainer as a real process on a real tiny model: its protocol, its limits and its end."""

import json
from pathlib import Path

import pytest
from tiny_models import make_tiny_model, write_causal, write_classification
from trainer_pipe import Trainer, make_open, trainer
from trainer_support import LABELS, adapter_tensors, load, make_plan, write_adapter

from fedpipe_agent.train.base import Base
from fedpipe_agent.trainer_protocol import (
    ErrorReply,
    EvaluatedReply,
    EvaluateRequest,
    Opened,
    ScoredReply,
    ScoreRequest,
    Surveyed,
    SurveyRequest,
    TrainedReply,
    TrainRequest,
)
from fedpipe_profiles.device import MIB
from fedpipe_wire.tensors import TensorFile, a_name, b_name, head_name


def refined(base: Base, adapter: Path, update: Path, components: dict[str, tuple[int, ...]]) -> None:
    """Put the update's components back into the global adapter, as an aggregation of one agent would."""
    with TensorFile(adapter) as old, TensorFile(update) as new:
        tensors = {name: old.read(name) for name in old.header}
        for name, indices in components.items():
            tensors[a_name(name)][list(indices)] = new.read(a_name(name))
            tensors[b_name(name)][:, list(indices)] = new.read(b_name(name))
        for name in base.head:
            tensors[head_name(name)] = new.read(head_name(name))
    write_adapter(adapter, tensors)


@pytest.mark.timeout(240)
def test_a_run_of_a_classification(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "bert", "bert", dropout=0.1)
    data = write_classification(tmp_path / "data.jsonl", rows=160)
    base = load(model, "sequence-classification", 32)
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors(base))
    with trainer(tmp_path / "log") as process:
        process.send(SurveyRequest())
        assert "open" in process.expect(ErrorReply).message
        process.send(make_open(model, data, "sequence-classification"))
        opened = process.expect(Opened)
        assert 50 * MIB < opened.context_bytes < 2000 * MIB
        assert "torch" in opened.versions

        process.send(SurveyRequest())
        survey = process.expect(Surveyed)
        assert survey.labels == LABELS
        assert survey.train_examples + survey.held_out_examples == 160
        assert 8 <= survey.mean_tokens <= 24

        process.send(ScoreRequest(labels=LABELS, batches=3, budget_s=60.0))
        scored = process.expect(ScoredReply)
        assert scored.contribution.examples == 6
        assert {name: len(curve) for name, curve in scored.contribution.curves.items()} == dict.fromkeys(
            (weight.name for weight in survey.shape.weights), 4
        )
        assert [m.bits for m in scored.measurements] == [32] * len(scored.measurements)
        assert {m.batch_size for m in scored.measurements} == {2, 8}
        assert any(m.gradient_checkpointing for m in scored.measurements)
        assert scored.measurements[0].evaluation_example_s is not None

        process.send_line('{"op": "train"}')
        assert "malformed" in process.expect(ErrorReply).message

        first, *_, last = _rounds(process, base, adapter, tmp_path)
        assert last.metrics.loss < 0.8 * first.metrics.loss
        assert last.metrics.examples == 12

        components = {next(iter(base.weights)): (0,)}
        plan = make_plan(components, bits=32)
        process.send(TrainRequest(labels=LABELS, plan=plan, adapter=adapter, update=tmp_path / "u", budget_s=0.01))
        late = process.next()
        late = process.next() if isinstance(late, EvaluatedReply) else late
        assert isinstance(late, ErrorReply)
        assert late.kind == "time"
        assert not (tmp_path / "u").exists()

        process.send(EvaluateRequest(labels=LABELS, plan=plan, adapter=tmp_path / "no-file"))
        assert process.expect(ErrorReply).kind == "model"
        process.send(EvaluateRequest(labels=LABELS[:2], plan=plan, adapter=adapter))
        assert process.expect(ErrorReply).kind == "model"
        process.send(EvaluateRequest(labels=LABELS, plan=plan, adapter=adapter))
        again = process.expect(EvaluatedReply).metrics
        assert again.loss == pytest.approx(last.metrics.loss, rel=1e-4)
        assert again.accuracy == last.metrics.accuracy

        assert process.process.stdin is not None
        process.process.stdin.close()
        assert process.process.wait(30) == 0
        assert process.process.stdout is not None
        assert process.process.stdout.read() == b""


def _rounds(process: Trainer, base: Base, adapter: Path, tmp_path: Path) -> list[EvaluatedReply]:
    """Five rounds at changing bits and ranks, and the metrics before each and at the end."""
    found = []
    names = list(base.weights)
    for number, bits in enumerate((32, 32, 8, 4, 32), start=1):
        components: dict[str, tuple[int, ...]] = {
            name: ((number % 6,) if i % 2 else (1, 3, 5)) for i, name in enumerate(names[:-1])
        }
        plan = make_plan(
            components,
            bits=bits,
            round=number,
            examples=150,
            batch_size=8,
            seed=number,
            gradient_checkpointing=bits == 4,
        )
        update = tmp_path / f"update-{number}"
        process.send(TrainRequest(labels=LABELS, plan=plan, adapter=adapter, update=update, budget_s=100.0))
        found.append(process.expect(EvaluatedReply))
        trained = process.expect(TrainedReply)
        assert (trained.examples, trained.steps, trained.actions) == (150, 19, ())
        assert (trained.measurement.bits, trained.measurement.gradient_checkpointing) == (bits, bits == 4)
        assert trained.compute_s > 0.0
        refined(base, adapter, update, components)
    process.send(EvaluateRequest(labels=LABELS, plan=make_plan({}, bits=32), adapter=adapter))
    return [*found, process.expect(EvaluatedReply)]


@pytest.mark.timeout(240)
def test_the_memory_limit_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "gpt2", "gpt2")
    large = make_tiny_model(tmp_path / "large", "gpt2", unused_words=1_000_000)
    data = write_causal(tmp_path / "data.jsonl", rows=20_000)
    base = load(model, "causal-lm", 32)
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors(base))
    components = dict.fromkeys(base.weights, (0, 1))

    def request(batch_size: int, update: str) -> TrainRequest:
        plan = make_plan(components, batch_size=batch_size, examples=max(16, batch_size), sequence_length=24)
        return TrainRequest(labels=(), plan=plan, adapter=adapter, update=tmp_path / update, budget_s=100.0)

    with trainer(tmp_path / "log") as process:
        process.send(make_open(model, data, "causal-lm", memory_limit_bytes=MIB))
        refused = process.expect(ErrorReply)
        assert refused.kind == "out-of-memory"
        assert "limit of 1 MiB" in refused.message
        process.send(make_open(model, data, "causal-lm"))
        context = process.expect(Opened).context_bytes
        process.send(make_open(model, data, "causal-lm"))
        assert "a process for another" in process.expect(ErrorReply).message
        process.send(request(8, "small"))
        process.expect(EvaluatedReply)
        assert process.expect(TrainedReply).actions == ()

    limit = context + 120 * MIB
    with trainer(tmp_path / "log-2", limit) as process:
        process.send(make_open(model, data, "causal-lm", memory_limit_bytes=limit))
        process.expect(Opened)
        process.send(request(8192, "halved"))
        process.expect(EvaluatedReply)
        halved = process.expect(TrainedReply)
        assert halved.examples == 8192
        assert "out of memory at 8192 examples" in halved.actions[0]
        assert halved.measurement.batch_size < 8192
        assert halved.measurement.peak_bytes <= 140 * MIB

    with trainer(tmp_path / "log-3", context + 24 * MIB) as process:
        process.send(make_open(large, data, "causal-lm", memory_limit_bytes=context + 24 * MIB))
        process.expect(Opened)
        process.send(request(8, "none"))
        failed = process.next()
        failed = process.next() if isinstance(failed, EvaluatedReply) else failed
        assert isinstance(failed, ErrorReply), failed
        assert failed.kind == "out-of-memory"
        assert not (tmp_path / "none").exists()
        process.send(SurveyRequest())
        process.expect(Surveyed)
    log = "".join(path.read_text() for path in tmp_path.glob("log*"))
    assert json.dumps("w1 w1")[1:-1] not in log  # no example in the log
