"""Fewer bits when nothing else helps: the order, what is freed in between, and that no finished step is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_tiny_model
from trainer_support import SCALE, FreeMeter, adapter_tensors, load, make_plan, some_components, write_adapter

from fedpipe_agent.train import step as step_module
from fedpipe_agent.train.adapters import attached, read_plan
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.data import Batch, Encoded
from fedpipe_agent.train.errors import MemoryExceededError, ModelError
from fedpipe_agent.train.ladder import down_the_bits, fewer_and_fewer
from fedpipe_agent.train.loop import Course, Watch, measurement, train
from fedpipe_agent.train.memory import is_out_of_memory
from fedpipe_agent.train.step import Losses, StepSettings, losses
from fedpipe_profiles.device import Bits

GROUPS = [[Encoded((2, 4 + i, 10 + j, 12 + i, 3), target=(i + j) % 3) for j in range(4)] for i in range(6)]


def test_the_bits_fall_from_those_of_the_plan() -> None:
    assert fewer_and_fewer(16, (32, 4, 8, 16)) == (16, 8, 4)
    assert fewer_and_fewer(32, (4, 8, 32)) == (32, 8, 4)
    assert fewer_and_fewer(4, (4, 8)) == (4,)


@pytest.mark.parametrize(
    "error", [MemoryExceededError("x"), MemoryError(), torch.OutOfMemoryError("x"), OSError(12, "no memory")]
)
def test_each_rung_frees_what_is_held_before_the_next(error: Exception) -> None:
    done: list[object] = []
    actions: list[str] = []

    def attempt(bits: Bits) -> str:
        done.append(bits)
        if bits > 4:
            raise error
        return "fits"

    assert down_the_bits((32, 8, 4), attempt, lambda: done.append("freed"), actions) == "fits"
    assert done == [32, "freed", 8, "freed", 4]
    assert actions == ["out of memory at 32 bits, now 8 bits", "out of memory at 8 bits, now 4 bits"]


def test_only_memory_leads_down_and_the_last_rung_fails() -> None:
    actions: list[str] = []

    def fail(error: Exception) -> Callable[[Bits], None]:
        def attempt(_: Bits) -> None:
            raise error

        return attempt

    for wrong in (ModelError("x"), RuntimeError("x"), OSError(28, "full")):
        with pytest.raises(type(wrong)):
            down_the_bits((8, 4), fail(wrong), actions.clear, actions)
    assert actions == []
    with pytest.raises(MemoryExceededError):
        down_the_bits((8, 4), fail(MemoryExceededError("x")), lambda: None, actions)
    assert len(actions) == 1


def test_memory_is_known_as_the_cause_behind_a_library_s_own_error() -> None:
    def wrapped(cause: Exception) -> RuntimeError:
        try:
            try:
                raise cause
            finally:
                raise RuntimeError("some issues during automatic conversion")
        except RuntimeError as error:
            return error

    assert is_out_of_memory(wrapped(RuntimeError("DefaultCPUAllocator: can't allocate memory")))
    assert is_out_of_memory(wrapped(MemoryError()))
    assert not is_out_of_memory(wrapped(ValueError("no such layer")))


def test_memory_that_runs_out_while_adam_makes_its_state_leaves_no_half_of_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(folder, "sequence-classification", 32)
    zeros, calls = torch.zeros_like, 0

    def limited(*args: Any, **more: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:  # the second moments of the second parameter
            raise MemoryError
        return zeros(*args, **more)

    settings = StepSettings(64, 0.01, 2, 4, checkpointing=False)
    plan = make_plan(some_components(base))
    path = write_adapter(tmp_path / "adapter", adapter_tensors(base))
    with attached(base, read_plan(base, path, plan), scale=SCALE) as on_base:
        monkeypatch.setattr(torch, "zeros_like", limited)
        trained = train(base, on_base, GROUPS, settings=settings, seed=3, watch=Watch(lambda: 0.0, 1e9, FreeMeter()))
    assert trained.steps == 6
    assert ["now 2 at a time" in said for said in settings.actions] == [True]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("ladder") / "bert", "bert")


def course_on(
    bases: list[Base], tmp_path: Path, fails_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, Any, list[str]]:
    """Train the groups on the first base; where memory runs out for good, go on on the second."""
    calls = 0

    def limited(base: Base, batch: Batch, label_shift: torch.Tensor | None = None) -> Losses:
        nonlocal calls
        calls += 1
        if base is bases[0] and fails_at is not None and calls > fails_at:
            raise MemoryError
        return losses(base, batch, label_shift)

    monkeypatch.setattr(step_module, "losses", limited)
    settings = StepSettings(64, 0.01, 2, 4, checkpointing=False)
    course, watch = Course(iter(GROUPS)), Watch(lambda: 0.0, 1e9, FreeMeter())
    path = write_adapter(tmp_path / "adapter", adapter_tensors(bases[0]))
    for base in bases:
        plan = make_plan(some_components(base))
        with attached(base, read_plan(base, path, plan), scale=SCALE) as on_base:
            try:
                trained = train(base, on_base, course, settings=settings, seed=3, watch=watch)
            except MemoryExceededError:
                continue
            values = torch.cat([p.detach().flatten().clone() for p in on_base.trainable])
            figures = measurement(base, on_base, trained, batch_size=4, meter=FreeMeter(), evaluation_example_s=None)
            return values, (trained, figures), settings.actions
    raise AssertionError("no base was small enough")


def test_what_is_finished_is_kept_with_its_optimizer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (load(folder, "sequence-classification", 32) for _ in range(2))
    whole, _, none = course_on([first], tmp_path, None, monkeypatch)
    parts, (trained, _), actions = course_on([first, second], tmp_path, 3, monkeypatch)
    assert none == []
    assert (trained.examples, trained.steps) == (24, 6)
    assert len(actions) == 3
    assert "now 2 at a time" in actions[0]
    assert "now 1 at a time" in actions[1]
    assert "checkpointing turned on" in actions[2]
    with attached(
        first,
        read_plan(first, tmp_path / "adapter", make_plan(some_components(first))),
        scale=SCALE,
    ) as on_base:
        received = torch.cat([p.detach().flatten().clone() for p in on_base.trainable])
    # the same bits: only the order of summation differs. Without Adam's state the difference is tenfold
    assert (whole - parts).norm() < 0.02 * (whole - received).norm()


def test_the_measurement_is_of_the_bits_that_worked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = [load(folder, "sequence-classification", bits) for bits in (32, 4)]
    _, (trained, figures), actions = course_on(bases, tmp_path, 3, monkeypatch)
    assert (figures.bits, figures.batch_size, figures.gradient_checkpointing) == (4, 1, True)
    assert (trained.examples, trained.steps) == (24, 6)
    assert len(actions) == 3
