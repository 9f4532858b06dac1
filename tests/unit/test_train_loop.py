"""Steps, budgets and failures on a tiny model: the same gradient however a step is split, and never a silent loss."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import HIDDEN, make_tiny_model
from trainer_support import LABELS, SCALE, FreeMeter, adapter_tensors, load, make_plan, some_components, write_adapter

from fedpipe_agent.train import evaluate as evaluate_module
from fedpipe_agent.train import step as step_module
from fedpipe_agent.train.adapters import Attached, attached, read_plan, write_update
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.data import IGNORED, Batch, Encoded
from fedpipe_agent.train.errors import MemoryExceededError, ModelError, OutOfTimeError
from fedpipe_agent.train.evaluate import evaluate
from fedpipe_agent.train.loop import Trained, Watch, expected_s, measurement, train, usual_s, warm_up_steps
from fedpipe_agent.train.memory import is_out_of_memory
from fedpipe_agent.train.step import Losses, Stepper, StepSettings, losses

CLASSES = [Encoded((2, 4 + i % 3, *range(10 + i % 5, 14 + i % 9), 3), target=i % 3) for i in range(24)]
TEXTS = [Encoded(ids, labels=(IGNORED, *ids[1:])) for i in range(8) if (ids := tuple(range(4 + i, 9 + 2 * i)))]
GROUPS = [CLASSES[i : i + 4] for i in range(0, 24, 4)]
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. Error code 12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def bert(folder: Path) -> Base:
    return load(make_tiny_model(folder / "bert", "bert"), "sequence-classification", 32)


@pytest.fixture(scope="module")
def llama(folder: Path) -> Base:
    return load(make_tiny_model(folder / "llama", "llama"), "causal-lm", 32)


def make_settings(**changes: Any) -> StepSettings:
    values: dict[str, Any] = {
        "sequence_length": 64,
        "learning_rate": 0.01,
        "warm_up_steps": 0,
        "micro_batch": 4,
        "checkpointing": False,
    }
    return StepSettings(**(values | changes))


def on(base: Base, tmp_path: Path) -> Any:
    path = write_adapter(tmp_path / "adapter", adapter_tensors(base))
    return attached(base, read_plan(base, path, make_plan(some_components(base))), scale=SCALE)


def run(
    base: Base, on_base: Attached, settings: StepSettings, groups: Iterable[list[Encoded]] | None = None, **watch: Any
) -> Trained:
    values: dict[str, Any] = {"clock": lambda: 0.0, "stop_at": 1e9, "meter": FreeMeter()} | watch
    return train(base, on_base, groups or GROUPS, settings=settings, seed=3, watch=Watch(**values))


def after_training(base: Base, tmp_path: Path, settings: StepSettings, groups: list[list[Encoded]]) -> torch.Tensor:
    with on(base, tmp_path) as on_base:
        run(base, on_base, settings, groups)
        return torch.cat([p.detach().flatten().clone() for p in on_base.trainable])


@pytest.mark.parametrize("split", [{"micro_batch": 1}, {"micro_batch": 3}, {"checkpointing": True}])
@pytest.mark.parametrize("task", ["classification", "text"])
def test_the_result_does_not_depend_on_how_a_step_is_split(
    bert: Base, llama: Base, tmp_path: Path, task: str, split: dict[str, Any]
) -> None:
    base, groups = (bert, GROUPS[:2]) if task == "classification" else (llama, [TEXTS[:4], TEXTS[4:]])
    whole = after_training(base, tmp_path, make_settings(), groups)
    parts = after_training(base, tmp_path, make_settings(**split), groups)
    with on(base, tmp_path) as on_base:
        received = torch.cat([p.detach().flatten() for p in on_base.trainable])
    # Adam turns rounding of a gradient that is almost zero into a visible step of it: compare all in all
    assert (whole - parts).norm() < 0.01 * (whole - received).norm()


def test_same_seed_and_data_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    base = load(make_tiny_model(folder / "dropout", "bert", dropout=0.1), "sequence-classification", 32)

    def update(seed: int) -> bytes:
        with on(base, tmp_path) as on_base:
            watch = Watch(lambda: 0.0, 1e9, FreeMeter())
            train(base, on_base, GROUPS, settings=make_settings(), seed=seed, watch=watch)
            write_update(tmp_path / "update", on_base)
        return (tmp_path / "update").read_bytes()

    assert update(1) == update(1)
    assert update(1) != update(2)


def test_token_losses_are_those_of_the_whole_logits(llama: Base) -> None:
    ids = torch.tensor([[4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 0, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, IGNORED, 7, 8, 9], [IGNORED, 11, IGNORED, 13, IGNORED, IGNORED]])
    batch = Batch(ids, (ids > 0).long(), labels, torch.tensor([3, 2]))
    llama.model.eval()
    with torch.no_grad():
        found = losses(llama, batch).total
        logits = llama.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        nats = -logits.log_softmax(-1)
    first = nats[0, 2, 7] + nats[0, 3, 8] + nats[0, 4, 9]
    second = nats[1, 0, 11] + nats[1, 2, 13]
    assert torch.allclose(found, torch.stack([first, second]), atol=1e-5)


def test_loss_falls_on_what_can_be_learned(bert: Base, tmp_path: Path) -> None:
    with on(bert, tmp_path) as on_base:
        before = evaluate(bert, GROUPS, sequence_length=64, meter=FreeMeter())
        run(bert, on_base, make_settings(), GROUPS * 8)
        after = evaluate(bert, GROUPS, sequence_length=64, meter=FreeMeter())
    assert after.loss < 0.5 * before.loss
    assert after.accuracy is not None
    assert after.accuracy > 0.9
    assert after.examples == len(CLASSES)


def test_evaluation_is_the_mean_over_tokens(llama: Base) -> None:
    whole = evaluate(llama, [TEXTS], sequence_length=64, meter=FreeMeter())
    single = [evaluate(llama, [[e]], sequence_length=64, meter=FreeMeter()).loss for e in TEXTS]
    units = [e.units for e in TEXTS]
    assert whole.loss == pytest.approx(sum(n * u for n, u in zip(single, units, strict=True)) / sum(units), rel=1e-5)
    assert whole.accuracy is None


class Ticking:
    """A clock on which every step takes `step_s`: each step asks it twice."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s, self.asked = 0.0, step_s, 0

    def __call__(self) -> float:
        self.asked += 1
        if self.asked % 2 == 0:
            self.now += self.step_s
        return self.now


@pytest.mark.parametrize(("stop_at", "steps"), [(1e9, 6), (6.0, 6), (5.9, 5), (2.0, 2), (1.0, 1), (0.5, 1)])
def test_no_step_begins_that_would_end_too_late(bert: Base, tmp_path: Path, stop_at: float, steps: int) -> None:
    with on(bert, tmp_path) as on_base:
        found = run(bert, on_base, make_settings(), clock=Ticking(1.0), stop_at=stop_at)
    assert (found.steps, found.examples) == (steps, 4 * steps)
    assert found.loss > 0.0


def test_without_time_for_a_step_it_says_so(bert: Base, tmp_path: Path) -> None:
    with on(bert, tmp_path) as on_base, pytest.raises(OutOfTimeError, match="one step"):
        run(bert, on_base, make_settings(), stop_at=-1.0)


def test_the_first_step_does_not_count_as_typical() -> None:
    assert expected_s([]) == 0.0
    assert expected_s([9.0]) == 9.0
    assert expected_s([9.0, 1.0, 2.0]) == 2.0


def test_a_usual_step_is_the_mean_without_its_stalls() -> None:
    # 30, 10, 20 and 20 tokens: longer steps are no stalls
    assert usual_s([3.0, 1.0, 2.0, 2.0], [30, 10, 20, 20]) == pytest.approx(2.0)
    calm = usual_s([2.0, 2.0, 2.0, 2.0], [20, 20, 20, 20])
    stalled = usual_s([2.0, 2.0, 60.0, 2.0], [20, 20, 20, 20])
    assert (calm, stalled) == (2.0, 3.0)
    assert usual_s([7.0], [8]) == 7.0


class Lazy:
    """A clock and batches on it: making each batch takes `wait_s`."""

    def __init__(self, wait_s: float, clock: Ticking) -> None:
        self.wait_s, self.clock = wait_s, clock

    def __iter__(self) -> Iterator[list[Encoded]]:
        for group in GROUPS:
            self.clock.now += self.wait_s
            yield group


def test_making_the_batches_is_a_part_of_a_step(bert: Base, tmp_path: Path) -> None:
    clock = Ticking(1.0)
    with on(bert, tmp_path) as on_base:
        found = run(bert, on_base, make_settings(), Lazy(0.25, clock), clock=clock)
        figures = measurement(bert, on_base, found, batch_size=4, meter=FreeMeter(), evaluation_example_s=None)
    assert found.step_s == (1.0,) * (len(GROUPS) - 1)
    assert figures.step_s == pytest.approx(1.25)
    assert figures.adapter_paths == sum((len(c) > 0) + (len(c) < 6) for c in some_components(bert).values())


@pytest.mark.parametrize(("steps", "warm"), [(1, 0), (9, 0), (10, 1), (25, 2), (1000, 4)])
def test_short_rounds_warm_up_little(steps: int, warm: int) -> None:
    assert warm_up_steps(steps) == warm


def failing_above(size: int, error: Callable[[], BaseException]) -> Callable[[Base, Batch], Losses]:
    """`losses` for batches of at most `size` examples."""

    def limited(base: Base, batch: Batch, label_shift: torch.Tensor | None = None) -> Losses:
        if len(batch.ids) > size:
            raise error()
        return losses(base, batch, label_shift)

    return limited


ERRORS: dict[str, Callable[[], BaseException]] = {
    "cpu": lambda: RuntimeError(NO_MEMORY),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory."),
    "python": MemoryError,
}


@pytest.mark.parametrize("kind", ERRORS)
def test_out_of_memory_halves_the_batch_and_keeps_the_result(
    bert: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole = after_training(bert, tmp_path, make_settings(), GROUPS[:2])
    monkeypatch.setattr(step_module, "losses", failing_above(1, ERRORS[kind]))
    settings = make_settings()
    with on(bert, tmp_path) as on_base:
        found = run(bert, on_base, settings, GROUPS[:2])
        parts = torch.cat([p.detach().flatten() for p in on_base.trainable])
        figures = measurement(bert, on_base, found, batch_size=4, meter=FreeMeter(), evaluation_example_s=None)
    assert settings.actions == [
        "step 1: out of memory at 4 examples, now 2 at a time",
        "step 1: out of memory at 2 examples, now 1 at a time",
    ]
    assert found.examples == 8
    assert torch.allclose(parts, whole, atol=1e-3)
    assert figures.batch_size == 1


def test_then_checkpointing_then_it_gives_up(bert: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "losses", failing_above(0, ERRORS["cpu"]))
    settings = make_settings(micro_batch=2)
    with on(bert, tmp_path) as on_base, pytest.raises(MemoryExceededError, match="fewer bits") as error:
        run(bert, on_base, settings)
    assert settings.actions[1:] == ["step 1: out of memory at 1 example, checkpointing turned on"]
    assert error.value.peak_bytes > 0


def test_checkpointing_that_suffices_goes_on(bert: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(base: Base, batch: Batch, label_shift: torch.Tensor | None = None) -> Losses:
        encoder = base.model.bert.encoder
        if not any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules()):
            raise RuntimeError(NO_MEMORY)
        return losses(base, batch, label_shift)

    monkeypatch.setattr(step_module, "losses", limited)
    settings = make_settings(micro_batch=1)
    with on(bert, tmp_path) as on_base:
        assert run(bert, on_base, settings).examples == len(CLASSES)
    assert settings.checkpointing


def test_other_errors_are_not_taken_for_missing_memory(
    bert: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "losses", failing_above(0, lambda: RuntimeError("shapes do not match")))
    with on(bert, tmp_path) as on_base, pytest.raises(RuntimeError, match="shapes do not match"):
        run(bert, on_base, make_settings())


def test_a_loss_that_is_not_finite_names_its_step(bert: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned() -> Iterator[float]:
        yield from (1.0, 1.0, float("nan"))

    factor = poisoned()

    def spoilt(base: Base, batch: Batch, label_shift: torch.Tensor | None = None) -> Losses:
        found = losses(base, batch, label_shift)
        return Losses(found.total * next(factor), found.correct)

    monkeypatch.setattr(step_module, "losses", spoilt)
    with on(bert, tmp_path) as on_base, pytest.raises(ModelError, match="loss became nan at step 3: lower train"):
        run(bert, on_base, make_settings())


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The norm of the gradient that each optimizer step gets."""
    seen: list[float] = []
    optimizer_step = torch.optim.AdamW.step

    def spying(self: torch.optim.AdamW, *_: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        seen.append(torch.cat([g.flatten() for g in grads]).norm().item())
        return optimizer_step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", spying)
    return seen


def times(factor: float) -> Callable[[Base, Batch], Losses]:
    def scaled(base: Base, batch: Batch, label_shift: torch.Tensor | None = None) -> Losses:
        found = losses(base, batch, label_shift)
        return Losses(factor * found.total, found.correct)

    return scaled


def test_gradients_are_clipped(bert: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norms: list[float]) -> None:
    monkeypatch.setattr(step_module, "losses", times(1000.0))
    with on(bert, tmp_path) as on_base:
        Stepper(bert, on_base, make_settings(), FreeMeter()).step(GROUPS[0])
    assert norms == [pytest.approx(1.0, rel=1e-3)]


@pytest.mark.parametrize("task", ["classification", "text"])
def test_the_gradient_is_of_the_mean(
    bert: Base, llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norms: list[float], task: str
) -> None:
    base, group = (bert, GROUPS[0]) if task == "classification" else (llama, TEXTS[:4])
    monkeypatch.setattr(step_module, "losses", times(0.01))  # far below the norm that is clipped
    for repeats in (1, 2):
        with on(base, tmp_path) as on_base:
            Stepper(base, on_base, make_settings(micro_batch=3), FreeMeter()).step(group * repeats)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert 0.0 < norms[0] < 0.5


def test_evaluation_halves_batches_and_gives_up_at_one(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(bert, [CLASSES], sequence_length=64, meter=FreeMeter())
    monkeypatch.setattr(evaluate_module, "losses", failing_above(3, ERRORS["cpu"]))
    parts = evaluate(bert, [CLASSES], sequence_length=64, meter=FreeMeter())
    assert parts.examples == whole.examples
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    monkeypatch.setattr(evaluate_module, "losses", failing_above(0, ERRORS["cpu"]))
    with pytest.raises(MemoryExceededError, match="evaluation of 1 example"):
        evaluate(bert, [CLASSES], sequence_length=64, meter=FreeMeter())


def test_evaluation_within_a_budget_says_how_many(bert: Base) -> None:
    answers = iter([True, True, False])
    found = evaluate(bert, GROUPS, sequence_length=64, meter=FreeMeter(), may_go_on=lambda: next(answers))
    assert found.examples == 8
    with pytest.raises(OutOfTimeError, match="even one batch"):
        evaluate(bert, GROUPS, sequence_length=64, meter=FreeMeter(), may_go_on=lambda: False)


def test_figures_name_mean_and_longest(bert: Base, tmp_path: Path) -> None:
    groups = [[Encoded((4,) * n, target=0)] for n in (40, 8, 16)]
    with on(bert, tmp_path) as on_base:
        found = run(bert, on_base, make_settings(), groups, clock=Ticking(2.0))
        figures = measurement(bert, on_base, found, batch_size=1, meter=FreeMeter(), evaluation_example_s=0.5)
        assert figures.trainable_parameters == sum(p.numel() for p in on_base.trainable)
        sizes = {name: len(c) for name, c in some_components(bert).items()}
        side = sum((6 - sizes[n]) * (w.d_in + w.d_out) for n, w in bert.weights.items())
        assert figures.side_parameters == side
    assert (figures.sequence_length, figures.longest_sequence) == (12, 40)
    assert (figures.step_s, figures.steps, figures.bits) == (2.0, 3, 32)
    assert len(LABELS) * (HIDDEN + 1) < figures.trainable_parameters


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(NO_MEMORY), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(2, "No such file"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, expected: bool) -> None:  # noqa: FBT001 - a table's column
    assert is_out_of_memory(error) is expected
