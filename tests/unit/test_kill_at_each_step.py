"""The coordinator is killed after a step was stored and before anything was done of it: at every step of a run.

What the step asked for is lost. The state is read back from the store, the run is taken up, and ends as if nothing had
happened: the same adapter, the same updates each in one aggregation, the same record.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from run_support import Drive, aggregated, begin, evaluated, planned, scored, survey, trained

from fedpipe_coordinator.records.record_trail import RecordTrail
from fedpipe_coordinator.records.run_folder import AUDIT, RunFolder, round_record
from fedpipe_coordinator.runs.resume import resume
from fedpipe_coordinator.runs.run_events import (
    AgentOffline,
    AgentOnline,
    Aggregate,
    Export,
    Exported,
    Fetch,
    Heard,
    MakePlans,
    Note,
    RunAction,
    RunEvent,
    SaveRound,
    Send,
    Ticked,
    UpdatesRefused,
    UpdateStored,
)
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.store import SqliteStore
from fedpipe_wire.coordinator_messages import Ack, EvaluateTask, ScoreTask, SurveyTask, TrainTask

NAMES = ("a", "b")
WHEN = datetime(2030, 1, 1, tzinfo=UTC)
COMINGS_AND_GOINGS = ("offline", "returned")
"""Audit lines that may tell of the restart itself."""


@dataclass
class Town:
    """A coordinator on its store, its records, and honest agents that keep their updates until they are acknowledged.

    Everything that a step asks for happens after it, in order. `kill_at` is the number of the step after which the
    coordinator is killed; `late` is the agent that is `away` when it has its first update (None: not yet, empty: not
    any more), and is back when the round is closed. What `hostile` sends for round 2 is refused when the round closes.
    """

    folder: Path
    kill_at: int | None = None
    late: str | None = None
    steps: int = 0
    coming: list[RunEvent] = field(default_factory=list)
    outbox: dict[str, set[tuple[int, str]]] = field(default_factory=lambda: {name: set() for name in NAMES})
    away: str | None = None
    hostile: str | None = None
    aggregates: dict[int, Aggregate] = field(default_factory=dict)
    acks: Counter[tuple[str, int, bool]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.drive = Drive(begin(number=3))
        self.store = SqliteStore(self.folder / "store.db")
        self.runs = RunFolder(self.folder / "run")
        self.runs.make_again()
        self.open_trail()

    def open_trail(self) -> None:
        self.trail = RecordTrail(self.store, lambda _: self.runs, lambda: WHEN)
        self.trail.open(self.drive.state.run)

    def run(self) -> RunState:
        self.keep((Note("run-began", "it began"),))
        for name in NAMES:
            self.happen(AgentOnline(name, f"{name}-1"))
        for _ in range(500):
            if not self.drive.state.open:
                break
            if self.coming:
                self.happen(self.coming.pop(0))
            elif self.away is None and self.late is not None and (1, self.late_update) in self.outbox[self.late]:
                self.away = self.late
                self.happen(AgentOffline(self.late))
            else:
                self.happen(Ticked(), 21.0 if self.away else 1.0)
        self.trail.write_out(self.drive.state.run)
        self.store.close()
        return self.drive.state

    @property
    def late_update(self) -> str:
        return trained(self.late or "", 1).update.sha256

    def happen(self, event: RunEvent, after_s: float = 0.0) -> None:
        if self.away and self.drive.state.closed_round >= 1:
            name, self.away = self.away, ""
            self.comes(name)
        actions = self.drive(event, after_s)
        self.keep(actions)
        self.steps += 1
        if self.steps == self.kill_at:
            self.restart()
        else:
            self.do(actions)
            if self.steps % 3 == 0:  # written out now and then, as when nothing else is to be done
                self.trail.write_out(self.drive.state.run)

    def keep(self, actions: tuple[RunAction, ...]) -> None:
        state = self.drive.state
        lines = [self.trail.note(state.run, action) for action in actions if isinstance(action, Note)]
        for action in actions:
            if isinstance(action, SaveRound):
                assert state.shape is not None
                lines.append(self.trail.round(round_record(action.result, action.metric, state.shape, 1)))
        self.store.save_run(state, lines)
        self.trail.stored(state.run, lines)

    def do(self, actions: tuple[RunAction, ...]) -> None:
        state = self.drive.state
        for action in actions:
            match action:
                case Send(agent, message):
                    self.coming.extend(self.answers(agent, message))
                case Fetch(agent, round_, ref):
                    assert (round_, ref.sha256) in self.outbox[agent], "it was acknowledged, and is fetched again"
                    self.coming.append(UpdateStored(agent, round_, ref.sha256))
                case MakePlans():
                    self.coming.append(planned(state, action))
                case Aggregate() if action.round == 2 and self.hostile in action.updates:
                    out = (self.hostile, action.updates[self.hostile], "it moved too far")
                    self.coming.append(UpdatesRefused(2, (out,)))
                case Aggregate():
                    assert self.aggregates.setdefault(action.round, action) == action
                    self.coming.append(aggregated(state, action))
                case Export():
                    self.coming.append(Exported({"adapter": "out"}))
                case _:
                    pass

    def answers(self, agent: str, message: object) -> Iterator[RunEvent]:
        match message:
            case SurveyTask():
                yield Heard(agent, survey())
            case ScoreTask():
                yield Heard(agent, scored())
            case TrainTask(round=round_):
                yield Heard(agent, evaluated(round_, 1.0 / round_))
                yield from self.trains(agent, round_)
            case EvaluateTask(round=round_):
                yield Heard(agent, evaluated(round_, 1.0 / round_))
            case Ack():
                self.acks[agent, message.round, message.accepted] += 1
                self.outbox[agent].discard((message.round, message.sha256))
            case _:
                pass

    def trains(self, agent: str, round_: int) -> Iterator[RunEvent]:
        offer = trained(agent, round_)
        if not self.acks[agent, round_, True]:
            self.outbox[agent].add((round_, offer.update.sha256))
        if agent != self.late or round_ > 1 or self.away == "":
            yield Heard(agent, offer)

    def restart(self) -> None:
        """Only the store, the files and what agents hold is left; then the agents are heard of again."""
        self.store.close()
        self.store = SqliteStore(self.folder / "store.db")
        (state,) = self.store.runs()
        assert state == self.drive.state
        self.coming.clear()
        self.open_trail()
        state, actions = resume(state, self.drive.now)
        self.drive.state = state
        self.keep(actions)
        self.do(actions)
        for name in NAMES:
            if name != self.away:
                self.comes(name)

    def comes(self, name: str) -> None:
        """An agent is there again, and offers again what was not acknowledged."""
        self.happen(AgentOnline(name, f"{name}-1"))
        for round_, _ in sorted(self.outbox[name]):
            if name != self.late or round_ > 1 or self.away == "":
                self.coming.append(Heard(name, trained(name, round_)))

    def record(self) -> dict[str, Any]:
        """What people read afterwards."""
        audit = self.runs.audit()
        assert [line["number"] for line in audit] == list(range(1, len(audit) + 1))
        kinds = Counter((line["kind"], line["agent"]) for line in audit if line["kind"] not in COMINGS_AND_GOINGS)
        rounds = self.runs.rounds()
        return {
            "kinds": kinds,
            "rounds": [(line["round"], line["metric"], line["late"]) for line in rounds],
            "status": [[(agent["agent"], agent["status"]) for agent in line["agents"]] for line in rounds],
        }


def _calm(folder: Path, late: str | None, hostile: str | None = None) -> Town:
    folder.mkdir()
    town = Town(folder, late=late, hostile=hostile)
    town.run()
    assert town.drive.state.phase == "done"
    return town


@pytest.mark.parametrize("late", [None, "b"])
def test_a_run_that_is_killed_after_any_step_ends_as_if_it_were_not(tmp_path: Path, late: str | None) -> None:
    calm = _calm(tmp_path / "calm", late)
    assert calm.steps > 30
    used = [(each.round, sorted(each.updates), sorted(each.late)) for each in calm.aggregates.values()]
    first = ["a"] if late else ["a", "b"]
    assert used == [(1, first, []), (2, ["a", "b"], [late] if late else []), (3, ["a", "b"], [])]
    for step in range(1, calm.steps + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        town = Town(folder, kill_at=step, late=late)
        after = town.run()
        assert after.phase == "done", (step, after.phase, after.note)
        assert town.aggregates == calm.aggregates, step
        assert (after.adapter, after.final_metric) == (calm.drive.state.adapter, calm.drive.state.final_metric), step
        assert town.record() == calm.record(), step
        assert not any(town.outbox.values()), step
        assert not [key for key in town.acks if not key[2]], step


def test_a_refusal_at_the_close_outlives_a_kill_after_any_step(tmp_path: Path) -> None:
    """The same bytes, one line in the record, and the hostile agent hears why: of which step the kill takes nothing."""
    calm = _calm(tmp_path / "calm", None, "b")
    assert [sorted(each.updates) for each in calm.aggregates.values()] == [["a", "b"], ["a"], ["a", "b"]]
    assert calm.acks["b", 2, True] == calm.acks["b", 2, False] == 1
    assert calm.record()["kinds"]["rejected", "b"] == 1
    for step in range(1, calm.steps + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        town = Town(folder, kill_at=step, hostile="b")
        after = town.run()
        assert (after.phase, after.adapter) == ("done", calm.drive.state.adapter), step
        assert town.aggregates == calm.aggregates, step
        assert town.record() == calm.record(), step
        assert town.acks["b", 2, False] >= 1, step
        assert {key for key in town.acks if not key[2]} == {("b", 2, False)}, step


def test_a_run_that_is_killed_after_every_step_ends_too(tmp_path: Path) -> None:
    class Unlucky(Town):
        def happen(self, event: RunEvent, after_s: float = 0.0) -> None:
            self.kill_at = self.steps + 1 if self.steps % 2 and self.steps < 400 and not self.restarting else None
            super().happen(event, after_s)

        restarting = False

        def restart(self) -> None:
            self.restarting = True
            super().restart()
            self.restarting = False

    calm = _calm(tmp_path / "calm", None)
    (tmp_path / "killed").mkdir()
    town = Unlucky(tmp_path / "killed")
    after = town.run()
    assert after.phase == "done"
    assert town.aggregates == calm.aggregates
    assert after.adapter == calm.drive.state.adapter
    assert town.record()["rounds"] == calm.record()["rounds"]


@pytest.mark.parametrize("written", [0, 1, 2, 3])
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_lines_reach_their_file_once_and_in_order_whatever_was_written_before_a_kill(
    tmp_path: Path, written: int, cut: int
) -> None:
    """The kill comes while the file is written: some lines are in it whole, one may be cut short."""
    folder = RunFolder(tmp_path / "run")
    folder.make_again()
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        trail = RecordTrail(store, lambda _: folder, lambda: WHEN)
        lines = [trail.note(begin().run, Note("late", f"line {number}")) for number in (1, 2, 3)]
        store.save_run(begin(), lines)
        folder.append(AUDIT, [line.text for line in lines[:written]])
        with (folder.path / AUDIT).open("a") as file:
            file.write(lines[-1].text[:cut])
        again = RecordTrail(store, lambda _: folder, lambda: WHEN)
        again.open(begin().run)
        more = again.note(begin().run, Note("late", "line 4"))
        store.save_run(begin(), [more])
        again.stored(begin().run, [more])
        again.write_out(begin().run)
        assert [(line["number"], line["text"]) for line in folder.audit()] == [(n, f"line {n}") for n in (1, 2, 3, 4)]
        assert store.lines(begin().run) == []
