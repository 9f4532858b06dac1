"""The gate at the close of a round: who is over the bound, and what becomes of the round, in words and in bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from round_problems import SHAPE as TINY
from round_problems import write_global
from round_problems import write_update as write_tiny
from run_support import Drive, failed, plan, ref, trained, training
from safetensors.numpy import load_file, save_file

from fedpipe_coordinator import work
from fedpipe_coordinator.aggregation.adapter_making import first_adapter, update_file
from fedpipe_coordinator.aggregation.closing_gate import beyond_bound
from fedpipe_coordinator.aggregation.norms import Measured, measure
from fedpipe_coordinator.aggregation.round_files import UpdateFile
from fedpipe_coordinator.runs.resume import resume
from fedpipe_coordinator.runs.run_events import (
    AgentOnline,
    Aggregate,
    Aggregated,
    MakePlans,
    Ticked,
    UpdatesRefused,
    UpdateStored,
)
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.coordinator_messages import Ack, TrainTask
from fedpipe_wire.tensors import update_spec

FILE = Path("unread")


def refused(norms: Mapping[str, Mapping[str, float]], bound: float = 10.0) -> dict[str, str]:
    """Who is refused, with the reason, where each agent moved each weight so far; all have equal plans."""
    agents = sorted({agent for of in norms.values() for agent in of})
    updates = [
        UpdateFile(agent, 10, FILE, {weight: (0,) for weight, of in norms.items() if agent in of}) for agent in agents
    ]
    seen = {weight: {(agent, False): norm for agent, norm in of.items()} for weight, of in norms.items()}
    found = beyond_bound(Measured(seen, {}, tuple(update.place for update in updates)), updates, bound)
    return {agent: reason for (agent, _), reason in found.items()}


# --- who --------------------------------------------------------------------------------------------------------


def test_ten_times_the_others_median_is_taken_and_more_is_not() -> None:
    assert refused({"w": {"a": 1.0, "b": 2.0, "c": 15.0}}) == {}
    found = refused({"w": {"a": 1.0, "b": 2.0, "c": 15.1}, "v": {"a": 1.0, "b": 1.0, "c": 100.0}})
    assert list(found) == ["c"]
    assert found["c"].startswith(
        "its change of v (and 1 other weights) has norm 100, 100 times the median of the 2 other agents that trained it"
    )
    assert "at most 10 times is taken (aggregation.norm_bound)" in found["c"]


def test_one_weight_is_enough_to_be_refused() -> None:
    calm = dict.fromkeys("abcd", 1.0)
    assert list(refused({"w": calm, "v": calm | {"d": 11.0}})) == ["d"]


def test_nobody_is_judged_where_it_is_off_or_fewer_than_three_trained_the_weight() -> None:
    assert refused({"w": {"a": 1.0, "b": 1.0, "c": 1e30}}, bound=0.0) == {}
    assert refused({"w": {"a": 1.0, "b": 1e30}}) == {}
    assert refused({"w": {"a": 1.0, "b": 1.0}, "v": {"b": 1.0, "c": 1e30}}) == {}


def test_who_leaves_a_weight_as_it_is_sets_no_bound_of_0() -> None:
    assert refused({"w": {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}}) == {}
    assert refused({"w": {"a": 0.0, "b": 0.0, "c": 0.0, "d": 7.0}}) == {}
    assert list(refused({"w": {"a": 0.0, "b": 0.0, "c": 0.0, "d": 1.0, "e": 2.0, "f": 20.0}})) == ["f"]


def test_it_goes_on_until_nobody_is_over_so_that_giants_do_not_hide_large_ones() -> None:
    norms = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 40.0, "e": 1e6, "f": 1e6}
    assert sorted(refused({"w": norms})) == ["d", "e", "f"]
    for agents in pairwise("abcdef"):  # the same set, whoever is judged first
        left = {agent: norm for agent, norm in norms.items() if agent not in agents or norm == 1.0}
        assert sorted(refused({"w": left})) == sorted(agent for agent, norm in left.items() if norm > 1.0)


def test_steps_and_ranks_are_those_of_the_plan() -> None:
    """Forty times as far in four times the steps, with four times the ranks: five times, and no more than that."""
    updates = [UpdateFile(agent, 10, FILE, {"w": (0,)}) for agent in "abc"]
    updates.append(UpdateFile("d", 10, FILE, {"w": (0, 1, 2, 3)}, steps=4))
    seen = {"w": {("a", False): 1.0, ("b", False): 1.0, ("c", False): 1.0, ("d", False): 40.0}}
    places = tuple(update.place for update in updates)
    assert beyond_bound(Measured(seen, {}, places), updates, 5.0) == {}
    assert list(beyond_bound(Measured(seen, {}, places), updates, 4.9)) == [("d", False)]


def test_late_updates_are_judged_and_are_nobodys_measure() -> None:
    updates = [UpdateFile(agent, 10, FILE, {"w": (0,)}) for agent in "abc"]
    updates += [replace(update, base=FILE) for update in updates]
    seen = {"w": dict.fromkeys((update.place for update in updates[:3]), 1.0)}
    seen["w"] |= {("a", True): 10.0, ("b", True): 11.0, ("c", True): 1e9}
    found = beyond_bound(Measured(seen, {}, ()), updates, 10.0)
    assert sorted(found) == [("b", True), ("c", True)]


def test_late_updates_make_no_room_for_a_large_one() -> None:
    """Fifty times the three others; with what those brought late, ten times as large, the median would allow it."""
    updates = [UpdateFile(agent, 10, FILE, {"w": (0,)}) for agent in "abcd"]
    seen = {"w": {update.place: 1.0 for update in updates} | {("d", False): 50.0}}
    updates += [replace(update, base=FILE) for update in updates[:3]]
    seen["w"] |= {(agent, True): 9.9 for agent in "abc"}
    assert list(beyond_bound(Measured(seen, {}, ()), updates, 10.0)) == [("d", False)]


@pytest.mark.parametrize("hostile", [1, 2])
def test_fewer_than_half_cannot_have_an_honest_one_refused(tmp_path: Path, hostile: int) -> None:
    start = write_global(tmp_path, np.random.default_rng(1))
    honest = [write_tiny(tmp_path, start, f"silo-{n}", n) for n in range(hostile + 1)]
    for times in (0.0, 1e-6, 100.0, 1e6):
        others = [write_tiny(tmp_path, start, f"wild-{n}", 9 + n, times=times) for n in range(hostile)]
        updates = [*honest, *others]
        found = beyond_bound(measure(start, updates, shape=TINY), updates, 10.0)
        assert all(name.startswith("wild") for name, _ in found)
        assert len(found) == (hostile if times > 1 else 0)


# --- what becomes of the round ----------------------------------------------------------------------------------


class Round:
    """A run whose blobs are real, in its first round; `wild` agents multiply what they moved by a thousand."""

    def __init__(self, folder: Path, agents: Sequence[str], wild: Sequence[str] = (), **rounds: Any) -> None:
        self.folder, self.wild = folder, wild
        self.blobs = BlobStore(folder / "blobs", reserve_bytes=0)
        self.drive = training(*agents, number=4, **rounds)
        adapter = first_adapter(self.drive.state, self.blobs, folder)
        self.drive.state = self.drive.state.model_copy(update={"adapter": adapter})

    @property
    def state(self) -> RunState:
        return self.drive.state

    def bring(self, *agents: str, salt: str = "") -> None:
        for name in agents:
            asked = self.drive.member(name).plan
            assert asked is not None
            assert self.state.shape is not None
            assert self.state.adapter is not None
            before = load_file(self.blobs.path(self.state.adapter.sha256))
            numbers = np.random.default_rng([*name.encode(), *salt.encode()])
            step = 0.1 * (1000 if name in self.wild and not salt else 1)
            tensors = {}
            for each, spec in update_spec(self.state.shape, asked).items():
                indices = list(asked.components.get(each.rpartition(".")[0], ()))
                own = before[each]
                if each.endswith("lora_A"):
                    own = own[indices]
                elif each.endswith("lora_B"):
                    own = own[:, indices]
                tensors[each] = np.ascontiguousarray(own + step * numbers.normal(size=spec.shape), dtype=np.float32)
            save_file(tensors, self.folder / "update")
            blob = self.blobs.add_file(self.folder / "update")
            self.drive.hear(name, trained(name, self.state.round).model_copy(update={"update": blob}))
            self.drive(UpdateStored(name, self.state.round, blob.sha256))

    def work(self, state: RunState | None = None, action: Aggregate | None = None) -> Aggregated | UpdatesRefused:
        done = work.aggregate(state or self.state, action or self.drive.all(Aggregate)[-1], self.blobs, self.folder)
        assert isinstance(done, Aggregated | UpdatesRefused)
        return done


def _acks(drive: Drive, agent: str) -> list[bool]:
    return [ack.accepted for ack in drive.asked(agent, Ack)]


def test_the_round_goes_on_without_who_moved_too_far_and_says_so_to_everybody(tmp_path: Path) -> None:
    round_ = Round(tmp_path, "abcd", wild="d")
    round_.bring(*"abcd")
    event = round_.work()
    assert isinstance(event, UpdatesRefused)
    ((name, sha256, reason),) = event.updates
    assert (name, "has norm" in reason) == ("d", True)
    round_.drive(event)
    (note,) = round_.drive.notes("rejected")
    assert note.text.endswith(reason)
    assert note.data == {"sha256": sha256, "round": 1, "check": "norm"}
    assert _acks(round_.drive, "d") == [True, False]
    assert round_.drive.asked("d", Ack)[-1].reason == note.text
    assert sorted(round_.drive.all(Aggregate)[-1].updates) == ["a", "b", "c"]
    done = round_.work()
    assert isinstance(done, Aggregated)
    round_.drive(done)
    (note,) = round_.drive.notes("aggregated")
    assert (note.data["rule"], sorted(note.data["norms"])) == ("mean", ["a", "b", "c"])
    assert round_.state.pending is not None
    assert {m.name: m.standing for m in round_.state.pending.members}["d"] == "failed"
    assert round_.drive.all(MakePlans)[-1] == MakePlans(2, tuple("abcd")), "another round is another chance"


def test_the_bytes_are_those_of_a_round_that_it_never_was_in(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    with_it, without = Round(tmp_path / "with", "abcd", wild="d"), Round(tmp_path / "without", "abcd")
    with_it.bring(*"abcd")
    without.bring(*"abc")
    with_it.drive(with_it.work())
    done, other = with_it.work(), without.work(action=Aggregate(1, with_it.drive.all(Aggregate)[-1].updates))
    assert isinstance(done, Aggregated)
    assert isinstance(other, Aggregated)
    assert done.adapter == other.adapter


def test_a_kill_before_or_after_the_refusal_was_stored_ends_in_the_same_bytes(tmp_path: Path) -> None:
    round_ = Round(tmp_path, "abcd", wild="d")
    round_.bring(*"abcd")
    event = round_.work()
    before = round_.state
    round_.drive(event)
    for state in (before, round_.state):
        again, (action,) = resume(RunState.model_validate_json(state.model_dump_json()), 1e6)
        drive = Drive(again, now=1e6)
        assert isinstance(action, Aggregate)
        done = round_.work(again, action)
        if isinstance(done, UpdatesRefused):
            assert done == event
            drive(done)
            done = round_.work(drive.state, drive.all(Aggregate)[-1])
        assert done == round_.work()
        drive(AgentOnline("d", "d-1"))
        assert _acks(drive, "d")[-1] is False, "it may not have heard it before the kill"


def test_who_was_refused_and_offers_it_again_is_told_why_once_more(tmp_path: Path) -> None:
    round_ = Round(tmp_path, "abcd", wild="d")
    round_.bring(*"abcd")
    offer = round_.drive.member("d").trained
    round_.drive(round_.work())
    round_.drive.hear("d", offer)
    first, second, third = round_.drive.asked("d", Ack)
    assert (first.accepted, second, third.accepted) == (True, third, False)
    assert not round_.drive.notes("late")


def test_too_few_are_left_and_the_round_is_planned_again_for_those_refused(tmp_path: Path) -> None:
    round_ = Round(tmp_path, "abcd", wild="d", min_agents=4)
    round_.bring(*"abcd")
    round_.drive(round_.work())
    assert round_.state.phase == "planning"
    round_.drive(Ticked(), after_s=60.0)
    assert round_.drive.all(MakePlans)[-1] == MakePlans(1, ("d",))
    round_.drive.plan()
    assert [task.attempt for task in round_.drive.asked("d", TrainTask)] == [0, 1]
    round_.bring("d", salt="mended")
    assert sorted(round_.drive.all(Aggregate)[-1].updates) == list("abcd")
    assert isinstance(round_.work(), Aggregated)


def test_who_gives_up_the_round_after_a_refusal_is_answered_for_what_it_offered_anew(tmp_path: Path) -> None:
    round_ = Round(tmp_path, "abcd", wild="d", min_agents=4)
    round_.bring(*"abcd")
    round_.drive(round_.work())
    round_.drive(Ticked(), after_s=60.0)
    round_.drive.plan()
    anew = trained("d", 1, "anew")
    round_.drive.hear("d", anew)
    round_.drive.hear("d", failed(1, "data", "the files are gone"))
    last = round_.drive.asked("d", Ack)[-1]
    assert (last.sha256, last.accepted) == (anew.update.sha256, False)


@pytest.mark.parametrize(("batch_size", "steps"), [(2, 6), (5, 3), (64, 1)])
def test_how_many_steps_were_to_be_taken_is_no_word_of_the_sender(batch_size: int, steps: int) -> None:
    """Twelve examples in batches; whoever claims more steps may not move farther for it."""
    claimed = trained("a", 1).model_copy(update={"steps": 10**6})
    assert update_file("a", plan("a", 1, batch_size=batch_size), claimed, FILE).steps == steps


def test_a_refusal_of_another_round_or_of_an_update_that_is_not_in_it_changes_nothing(tmp_path: Path) -> None:
    round_ = Round(tmp_path, "abc")
    round_.bring(*"abc")
    before = round_.state
    assert round_.drive(UpdatesRefused(2, (("a", "0" * 64, "far"),))) == ()
    assert round_.drive(UpdatesRefused(1, (("a", ref("0" * 64).sha256, "far"),))) == tuple(
        round_.drive.all(Aggregate)[-1:]
    )
    assert round_.state == before
