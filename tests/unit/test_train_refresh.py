"""Measuring the contribution again: what it may cost, and that no failure of it costs a round."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_tiny_model, write_classification
from trainer_support import LABELS, FreeMeter, adapter_tensors, load, make_plan, some_components, write_adapter
from transformers import BertForSequenceClassification

from fedpipe_agent.train import contribution_methods, worker
from fedpipe_agent.train.adapters import SIDE, Factors
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.contribution_methods import METHODS, measure_contribution
from fedpipe_agent.train.data import Encoded
from fedpipe_agent.train.refresh import SHARE, Account, Batches
from fedpipe_agent.train.worker import Worker
from fedpipe_agent.trainer_protocol import OpenRequest, Reply, TrainedReply, TrainRequest
from fedpipe_data.source import DatasetSource
from fedpipe_profiles.contribution import Contribution, ContributionMethod
from fedpipe_wire.message_values import JobTerms

MANY = 140
"""Examples of a round, so that its share holds some."""

# --- the account ------------------------------------------------------------------------------------------------


@given(
    rounds=st.lists(st.tuples(st.integers(1, 500), st.floats(1e-3, 1e3)), min_size=1, max_size=12),
    method=st.sampled_from(list(METHODS)),
    asked=st.integers(0, 1 << 60),
    largest=st.integers(1, 64),
    fixed_s=st.floats(0, 5),
)
def test_scoring_stays_within_its_share(
    rounds: list[tuple[int, float]], method: ContributionMethod, asked: int, largest: int, fixed_s: float
) -> None:
    """Where a pass costs what a trained example does: at no time more than the share, of examples and of seconds."""
    account = Account(fixed_s)
    for examples, example_s in rounds:
        account = account.after_training(examples, examples * example_s)
        chosen = account.batches(method, asked, largest, example_s)
        if chosen is None:
            continue
        assert 1 <= chosen.count <= asked
        assert 1 <= chosen.size <= largest
        passes = METHODS[method].passes(chosen.count) * chosen.size
        account = account.after_scoring(passes, fixed_s + passes * example_s, fixed_s)
        assert account.scored_examples <= SHARE * account.trained_examples
        assert account.scored_s <= SHARE * account.trained_s * (1 + 1e-9)


def test_what_was_overdrawn_is_paid_for_by_later_rounds() -> None:
    account = Account(0.0).after_training(1000, 1000.0).after_scoring(10, 90.0, 1.0)
    assert account.batches("gradient-sketch", 4, 8, 1.0) is None
    assert account.after_training(1000, 1000.0).batches("gradient-sketch", 4, 8, 1.0) is None
    assert account.after_training(2000, 2000.0).batches("gradient-sketch", 4, 8, 1.0) is None
    assert account.after_training(2500, 2500.0).batches("gradient-sketch", 4, 8, 1.0) == Batches(4, 3)


def test_what_is_not_asked_for_is_not_done() -> None:
    assert Account(0.0).after_training(10**6, 1e6).batches("gradient-sketch", 0, 8, 1.0) is None


# --- on a real tiny model ---------------------------------------------------------------------------------------


class PassClock:
    """Seconds that pass only while the model works: one for each example that goes forward, and its way back."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Silo:
    model: Path
    data: Path
    base: Base
    adapter: Path


@pytest.fixture
def clock() -> Iterator[PassClock]:
    found = PassClock()
    original = BertForSequenceClassification.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.now += len(kwargs["input_ids"])
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "forward", forward)
        yield found


@pytest.fixture(scope="module")
def silo(tmp_path_factory: pytest.TempPathFactory) -> Silo:
    folder = tmp_path_factory.mktemp("silo")
    model = make_tiny_model(folder / "bert", "bert")
    base = load(model, "sequence-classification", 32)
    adapter = write_adapter(folder / "adapter", adapter_tensors(base))
    return Silo(model, write_classification(folder / "data.jsonl", rows=200), base, adapter)


class Rig:
    """A worker on a tiny model, whose time is counted in examples."""

    def __init__(
        self, folder: Path, silo: Silo, clock: PassClock, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        monkeypatch.setattr(worker, "open_meter", lambda *_: FreeMeter())
        self.folder, self.base, self.adapter = folder, silo.base, silo.adapter
        self.said: list[Reply] = []
        terms = JobTerms.model_validate(
            {
                "name": "job",
                "model": "tiny",
                "task": "sequence-classification",
                "dataset": "d",
                "seed": 5,
                "sequence_length": 32,
                "evaluation_examples": 4,
                "max_rank": 4,
                "batch_sizes": (2, 8),
                "contribution": method,
            }
        )
        request = OpenRequest(
            run="run-1",
            terms=terms,
            model=str(silo.model),
            dataset=DatasetSource(path=silo.data, held_out_fraction=0.3),
            device="cpu",
            supported_bits=(32,),
            memory_limit_bytes=1 << 40,
            threads=1,
        )
        self.worker = Worker(request, self.said.append, clock)

    def train(self, *, score_batches: int, examples: int = MANY, budget_s: float = 1e6) -> TrainedReply:
        plan = make_plan(some_components(self.base), examples=examples, batch_size=20)
        update = self.folder / "update"
        self.worker.train(
            TrainRequest(
                labels=LABELS,
                plan=plan,
                adapter=self.adapter,
                update=update,
                budget_s=budget_s,
                score_batches=score_batches,
            )
        )
        reply = self.said[-1]
        assert isinstance(reply, TrainedReply)
        assert update.stat().st_size > 0
        return reply


@pytest.mark.parametrize("method", METHODS)
def test_a_refresh_costs_at_most_its_share_of_the_training(
    tmp_path: Path, silo: Silo, clock: PassClock, monkeypatch: pytest.MonkeyPatch, method: ContributionMethod
) -> None:
    monkeypatch.setattr("fedpipe_agent.train.refresher.FIRST_FIXED_S", 0.0)
    rig = Rig(tmp_path, silo, clock, monkeypatch, method)
    replies = [rig.train(score_batches=4) for _ in range(2)]
    assert all(reply.contribution is not None for reply in replies)
    trained = sum(reply.examples for reply in replies)
    scored = sum(reply.score_s for reply in replies)  # in examples that went through the model
    assert 0 < scored <= SHARE * trained
    for reply in replies:
        assert reply.contribution is not None
        assert reply.contribution.method == method
        lengths = {name: len(points) for name, points in reply.contribution.curves.items()}
        assert lengths == dict.fromkeys(rig.base.weights, 4)


def test_a_refresh_does_not_change_the_update(
    tmp_path: Path, silo: Silo, clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, silo, clock, monkeypatch, "gradient-sketch")
    plain = rig.train(score_batches=0)
    without = (tmp_path / "update").read_bytes()
    scored = rig.train(score_batches=4)
    assert plain.contribution is None
    assert scored.contribution is not None
    assert (tmp_path / "update").read_bytes() == without


def test_too_little_training_pays_for_no_refresh(
    tmp_path: Path, silo: Silo, clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = Rig(tmp_path, silo, clock, monkeypatch, "gradient-sketch").train(score_batches=4, examples=16)
    assert reply.contribution is None
    assert reply.score_s == 0
    assert any("not measured again" in action and "3%" in action for action in reply.actions)


def test_a_near_deadline_leaves_it_out(
    tmp_path: Path, silo: Silo, clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = Rig(tmp_path, silo, clock, monkeypatch, "gradient-sketch").train(score_batches=4, budget_s=MANY + 6.0)
    assert reply.examples == MANY
    assert reply.contribution is None
    assert any("deadline is near" in action for action in reply.actions)


def test_no_memory_for_it_loses_nothing_but_the_refresh(
    tmp_path: Path, silo: Silo, clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, silo, clock, monkeypatch, "gradient-sketch")

    def no_room(*_given: Any, **_more: Any) -> Any:
        return torch.empty(1 << 60)

    broken = replace(METHODS["gradient-sketch"], measure=no_room)
    monkeypatch.setattr(contribution_methods, "METHODS", {"gradient-sketch": broken})
    reply = rig.train(score_batches=4)
    assert reply.examples == MANY
    assert reply.contribution is None
    assert any(action.endswith("out of memory") for action in reply.actions)
    monkeypatch.undo()
    monkeypatch.setattr(worker, "open_meter", lambda *_: FreeMeter())
    assert rig.train(score_batches=0).examples == MANY


def not_finite(*_given: Any, **_more: Any) -> Any:
    return torch.linalg.svd(torch.full((3, 3), torch.nan))


def too_large(*_given: Any, **_more: Any) -> Any:
    return Contribution(method="gradient-sketch", examples=1, curves={"w": (1e31,)})


def broken(*_given: Any, **_more: Any) -> Any:
    raise KeyError("\x1b[2J a patient's name")


@pytest.mark.parametrize(
    ("fault", "words"), [(not_finite, "no finite figures"), (too_large, "too large"), (broken, "unexpected KeyError")]
)
def test_no_error_of_a_refresh_loses_the_update(
    tmp_path: Path, silo: Silo, clock: PassClock, monkeypatch: pytest.MonkeyPatch, fault: Any, words: str
) -> None:
    rig = Rig(tmp_path, silo, clock, monkeypatch, "gradient-sketch")
    faulty = replace(METHODS["gradient-sketch"], measure=fault)
    monkeypatch.setattr(contribution_methods, "METHODS", {"gradient-sketch": faulty})
    reply = rig.train(score_batches=4)
    assert (reply.examples, reply.contribution) == (MANY, None)
    (said,) = [action for action in reply.actions if "not measured again" in action]
    assert words in said
    assert "patient" not in said


def test_no_error_outside_of_the_measuring_loses_the_update(
    tmp_path: Path, silo: Silo, clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, silo, clock, monkeypatch, "gradient-sketch")
    monkeypatch.setattr("fedpipe_agent.train.refresher.refresh", broken)
    reply = rig.train(score_batches=4)
    assert (reply.examples, reply.contribution) == (MANY, None)
    assert "contribution not measured again: unexpected KeyError" in reply.actions


def test_it_is_measured_where_the_adapters_have_brought_the_model(tmp_path: Path) -> None:
    """The sketch beside an adapter is the sketch of the base with the adapter's product added to its weights."""
    base = load(make_tiny_model(tmp_path / "llama", "llama"), "causal-lm", 32)
    texts = [[Encoded((2, *range(4, 12)), labels=(-100, *range(4, 12)))]]
    torch.manual_seed(1)
    scale = 2.0
    side = {
        name: Factors(0.3 * torch.randn(3, w.d_in), 0.3 * torch.randn(w.d_out, 3)) for name, w in base.weights.items()
    }
    beside = sketch(base, texts, {SIDE: side}, scale)
    with torch.no_grad():
        for name, pair in side.items():
            base.model.get_parameter(f"{name}.weight").add_(scale * pair.b @ pair.a)
    merged = sketch(base, texts, {}, scale)
    for name in base.weights:
        assert beside.curves[name] == pytest.approx(merged.curves[name], rel=1e-3), name


def sketch(base: Base, groups: list[list[Encoded]], beside: dict[str, dict[str, Factors]], scale: float) -> Any:
    return measure_contribution(
        base, "gradient-sketch", groups, max_rank=4, seed=0, sequence_length=32, beside=beside, scale=scale
    )
