"""A federation whose processes are killed: one hook per kind of process, and the run ends in the same bytes.

The whole walk is `python -m benchmarks.chaos`.
"""

from collections.abc import Iterator

import pytest
from mosquitto_support import mosquitto_or_skip

from benchmarks.chaos_checks import Evidence, problems_of
from benchmarks.chaos_trials import Atlas, Trial
from benchmarks.chaos_yard import AGENTS, ROUNDS, Yard
from benchmarks.echo_trainer import model_name
from benchmarks.fleet import JobSize

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
JOB = JobSize(model_name(8, 64, 64), ROUNDS, 4, AGENTS, deadline_s=40.0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Yard, Atlas, Evidence]]:
    """A fleet that has done one undisturbed run."""
    mosquitto_or_skip()
    with Yard(tmp_path_factory.mktemp("yard"), JOB, Trial(()), restart_broker=False) as yard:
        start = yard.hits()
        outcome = yard.run(Trial(()))
        assert problems_of(outcome.evidence, outcome.evidence) == []
        assert len(outcome.evidence.acks) >= AGENTS * ROUNDS
        yield yard, Atlas(outcome.hits, start), outcome.evidence


def test_every_kind_of_process_has_hooks_of_every_kind_of_operation(recorded: tuple[Yard, Atlas, Evidence]) -> None:
    names = [trial.name for trial in recorded[1].walk(0)]
    for part in (
        "agent:publish-trained@",
        "agent:received-ack@",
        "agent:fsync@",
        "coordinator:publish-ack@",
        "coordinator:sql-",
        "coordinator:replace@",
        "trainer:fsync@wire.tensor_writer",
        "trainer:replace@",
        "trainer:flush@echo_trainer.say",
        "broker@coordinator:publish-train-task@",
    ):
        assert any(name.startswith(part) for name in names), part


@pytest.mark.parametrize(
    "pattern",
    [
        "agent:publish-trained@*:after",
        "coordinator:publish-ack@*:before",
        "trainer:replace@*:after",
        "broker@agent:publish-chunk@*",
    ],
)
def test_a_kill_changes_nothing(recorded: tuple[Yard, Atlas, Evidence], pattern: str) -> None:
    yard, atlas, expected = recorded
    trial = atlas.walk(0, pattern)[0]
    outcome = yard.run(trial)
    assert problems_of(outcome.evidence, expected) + outcome.problems == [], yard.state()
    assert outcome.fired == 1


def test_a_process_that_is_killed_twice_changes_nothing(recorded: tuple[Yard, Atlas, Evidence]) -> None:
    """While it works, and while it starts again."""
    yard, atlas, expected = recorded
    trial = atlas.walk(0, "coordinator:write@coordinator.broker.config.write_config*")[0]
    assert len(trial.kills) == 2
    outcome = yard.run(trial)
    assert problems_of(outcome.evidence, expected) + outcome.problems == [], yard.state()
    assert outcome.fired == len(trial.kills)
