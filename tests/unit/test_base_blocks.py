"""What agents say of how a layer computes: compared with their weights, and agreed on by count."""

import pytest
from run_support import Drive, begin, scored, survey

from fedpipe_coordinator.runs.run_events import AgentOnline
from fedpipe_profiles.model import BlockShape
from fedpipe_wire.agent_messages import Survey
from fedpipe_wire.coordinator_messages import EndTask, ScoreTask

TRUE = BlockShape(norm="layer", key_value_heads=2, head_size=4, activation="gelu", hidden_dropout=0.1)
OTHER = TRUE.model_copy(update={"hidden_dropout": 0.0})


def telling(block: BlockShape | None) -> Survey:
    plain = survey()
    return plain.model_copy(update={"shape": plain.shape.model_copy(update={"block": block})})


def surveyed(**told: BlockShape | None) -> Drive:
    drive = Drive(begin())
    for agent in told:
        drive(AgentOnline(agent, f"{agent}-1"))
    for agent, block in told.items():
        drive.hear(agent, telling(block))
    return drive


def agreed(drive: Drive) -> BlockShape | None:
    assert drive.state.shape is not None
    return drive.state.shape.block


def test_agents_that_know_and_that_do_not_know_their_layers_work_together() -> None:
    drive = surveyed(a=None, b=TRUE, c=TRUE)
    assert all(drive.asked(agent, ScoreTask) for agent in "abc")
    assert agreed(drive) == TRUE


def test_one_agents_word_alone_is_not_planned_with() -> None:
    drive = surveyed(a=None, b=TRUE, c=None)
    assert all(drive.asked(agent, ScoreTask) for agent in "abc")
    assert agreed(drive) is None


def test_what_most_say_is_planned_with() -> None:
    drive = surveyed(a=OTHER, b=TRUE, c=TRUE)
    assert all(drive.asked(agent, ScoreTask) for agent in "abc")
    assert agreed(drive) == TRUE


def test_of_two_words_the_choice_does_not_depend_on_who_came_first() -> None:
    assert agreed(surveyed(a=OTHER, b=TRUE)) == agreed(surveyed(a=TRUE, b=OTHER))


def test_nothing_is_known_where_nobody_says_it() -> None:
    assert agreed(surveyed(a=None, b=None)) is None


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"head_size": 1 << 20}, "no weight that reads 2 heads of 1048576"),
        ({"key_value_heads": 3}, "2 heads do not divide by the 3 key-value heads"),
        ({"rotary_size": 6}, "rotates 6 entries of a head of 4"),
    ],
)
def test_a_block_that_the_weights_belie_leaves_its_agent_out(lie: dict[str, int], said: str) -> None:
    drive = surveyed(a=TRUE.model_copy(update=lie), b=TRUE, c=TRUE)
    assert said in drive.asked("a", EndTask)[0].reason
    assert agreed(drive) == TRUE


def test_one_that_joins_late_may_know_less() -> None:
    drive = surveyed(a=TRUE, b=TRUE)
    for agent in "ab":
        drive.hear(agent, scored())
    assert drive.phase == "planning"
    drive(AgentOnline("late", "late-1"))
    drive.hear("late", telling(None))
    assert drive.asked("late", ScoreTask)
    assert agreed(drive) == TRUE
