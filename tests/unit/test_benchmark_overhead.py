"""The parts of a round are cut out of traces that a reader can follow; the echo's updates tell plans apart."""

import itertools
from pathlib import Path

import pytest
from trainer_support import make_plan

from benchmarks.echo_trainer import echo_shape, model_name, write_echo
from benchmarks.launch import Trace
from benchmarks.overhead import bytes_that_must_cross
from benchmarks.round_parts import PARTS, handling_seconds, read_trace, round_parts
from fedpipe_agent.train.errors import ModelError
from fedpipe_coordinator.aggregation.gate import check_update
from fedpipe_coordinator.aggregation.global_adapter import initial_adapter

COORDINATOR = """\
1.0 before posted-WorkDone-Aggregated
1.1 before posted-WorkDone-Planned
1.2 after posted-WorkDone-Planned
2.1 before received-chunk
2.2 after received-chunk
2.3 before posted-WorkDone-UpdateStored
2.4 after posted-WorkDone-UpdateStored
2.5 before received-chunk
2.6 after received-chunk
2.9 before posted-WorkDone-UpdateStored
2.95 before work-aggregate
3.4 after work-aggregate
3.5 before posted-WorkDone-Aggregated
3.6 before received-ch"""
AGENTS = ("1.9 before posted-FromTrainer-TrainerReplied-TrainedReply", "2.0 before posted-FromTrainer-X-TrainedReply")
ROUNDS = [{"round": 2, "agents": [{"compute_s": 0.25}, {"compute_s": 0.5}]}]


def test_the_parts_are_those_between_the_cuts_and_add_up() -> None:
    (parts,) = round_parts(read_trace(COORDINATOR), [read_trace(text) for text in AGENTS], ROUNDS)
    expected = {"planning": 0.2, "download": 0.3, "train": 0.5, "upload": 0.6, "check": 0.3, "aggregate": 0.5}
    assert parts == pytest.approx(expected | {"other": 0.1, "round": 2.5})
    assert sum(parts[name] for name in PARTS) == pytest.approx(parts["round"])


def test_traces_of_other_names_still_add_up() -> None:
    marks = read_trace("1.0 before posted-WorkDone-Aggregated\n4.0 before posted-WorkDone-Aggregated\n")
    (parts,) = round_parts(marks, [[]], [])
    assert sum(parts[name] for name in PARTS) == parts["round"] == 3.0


def test_handling_is_counted_by_kind() -> None:
    count, seconds = handling_seconds(read_trace(COORDINATOR))["received-chunk"]
    assert (count, round(seconds, 6)) == (2, 0.2)


def test_what_must_cross_is_every_byte_in_and_out() -> None:
    # 2 agents, 16 each: broadcast 16 in, 32 out; uploads 32 in, 32 out; and the last adapter's broadcast
    assert bytes_that_must_cross(16, 16, agents=2, rounds=1) == 112 + 48


def test_an_update_is_one_of_its_plan_and_tells_adapter_round_and_agent_apart(tmp_path: Path) -> None:
    shape = echo_shape(model_name(3, 24, 16))
    names = tuple(weight.name for weight in shape.weights)
    adapters = [tmp_path / "first", tmp_path / "second"]
    for seed, path in enumerate(adapters):
        initial_adapter(path, shape, names, 6, seed=seed, row_norm=1.0)
    plan = make_plan({names[0]: (0, 2), names[1]: (1, 3, 5), names[2]: ()})
    written = []
    changed: tuple[dict[str, object], ...] = ({}, {"round": 2}, {"agent": "b"})
    for adapter, changes in itertools.product(adapters, changed):
        path = tmp_path / "update"
        write_echo(path, shape, plan.model_copy(update=changes), adapter)
        check_update(path, shape, plan)
        written.append(path.read_bytes())
    assert len(set(written)) == len(written)
    write_echo(tmp_path / "again", shape, plan, adapters[0])
    assert (tmp_path / "again").read_bytes() == written[0]


def test_a_model_that_is_not_the_echos_is_refused() -> None:
    assert echo_shape("echo/2x8x4").weights[1].parameters == 32
    with pytest.raises(ModelError, match="name it echo/"):
        echo_shape("gpt2")


def test_a_trace_holds_chunks_back_and_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    trace = Trace(path)
    for _ in range(Trace.HELD + 5):
        trace.event("received-chunk", "before")
    assert len(read_trace(path.read_text())) == Trace.HELD
    trace.event("posted-WorkDone-Planned", "after")
    marks = read_trace(path.read_text())
    assert [mark.name for mark in marks] == ["received-chunk"] * (Trace.HELD + 5) + ["posted-WorkDone-Planned"]
    assert [mark.at for mark in marks] == sorted(mark.at for mark in marks)
