"""The checker of the chaos benchmark finds what it is there to find: each breach of a promise, and nothing else."""

from dataclasses import replace

import pytest

from benchmarks.chaos_checks import Accepted, Aggregation, Counters, Evidence, lineage, problems_of

AGENTS = ("a", "b")
STEPS = tuple(
    Aggregation(number, f"adapter{number - 1}", f"adapter{number}", tuple((a, f"{a}{number}") for a in AGENTS))
    for number in (1, 2, 3)
)
SOUND = Evidence(
    phase="done",
    rounds=(1, 2, 3),
    audited=(1, 2, 3),
    final="f" * 64,
    acks=tuple(Accepted(a, number, f"{a}{number}") for number in (1, 2, 3) for a in AGENTS),
    aggregations=STEPS,
)


def test_a_sound_run_has_no_problems() -> None:
    assert problems_of(SOUND, SOUND) == []


def test_work_begun_again_and_acknowledgements_said_again_are_no_problem() -> None:
    again = replace(SOUND, aggregations=(*STEPS, STEPS[1], STEPS[2]), acks=SOUND.acks * 2)
    assert problems_of(again, SOUND) == []
    assert lineage(again.aggregations) == list(STEPS)


def test_a_missing_word_in_the_audit_record_is_no_problem_and_a_doubled_one_is() -> None:
    assert problems_of(replace(SOUND, audited=(1, 3)), SOUND) == []
    (problem,) = problems_of(replace(SOUND, audited=(1, 2, 2, 3)), SOUND)
    assert "[2]" in problem


@pytest.mark.parametrize("where", [0, 1])
def test_a_doubled_aggregation_is_found(where: int) -> None:
    """In one call, and in two calls one after the other."""
    first = STEPS[where]
    doubled = replace(first, updates=(*first.updates, ("a", "a1")))
    (problem,) = problems_of(replace(SOUND, aggregations=tuple(doubled if s is first else s for s in STEPS)), SOUND)
    assert problem == "the update a1 of a was aggregated 2 times"


def test_an_acknowledged_update_that_is_not_in_the_adapter_is_found() -> None:
    without = replace(STEPS[1], updates=(("b", "b2"),))
    (problem,) = problems_of(replace(SOUND, aggregations=(STEPS[0], without, STEPS[2])), SOUND)
    assert problem == "the update a2 of a was acknowledged in round 2 and never aggregated"


def test_an_aggregation_that_the_last_adapter_does_not_come_from_does_not_count() -> None:
    aside = replace(STEPS[1], out="elsewhere")
    problems = problems_of(replace(SOUND, aggregations=(STEPS[0], aside, STEPS[2])), SOUND)
    assert any("a1 of a was acknowledged" in problem for problem in problems)


def test_two_updates_acknowledged_in_one_round_are_found() -> None:
    more = replace(STEPS[2], updates=(*STEPS[2].updates, ("a", "other")))
    two = replace(SOUND, acks=(*SOUND.acks, Accepted("a", 3, "other")), aggregations=(*STEPS[:2], more))
    (problem,) = problems_of(two, SOUND)
    assert problem == "2 updates of a were acknowledged in round 3"


def test_other_bytes_are_found_and_the_first_difference_is_named() -> None:
    changed = replace(STEPS[1], out="other", updates=(("a", "a2"), ("b", "stale")))
    after = replace(STEPS[2], start="other")
    acks = tuple(replace(ack, sha256="stale") if ack.sha256 == "b2" else ack for ack in SOUND.acks)
    run = replace(SOUND, final="0" * 64, aggregations=(STEPS[0], changed, after), acks=acks)
    assert problems_of(run, SOUND) == ["other bytes from round 2 on: updates of b differ"]
    (problem,) = problems_of(replace(SOUND, final="0" * 64), SOUND)
    assert "000000000000" in problem
    assert "ffffffffffff" in problem


def test_a_run_that_is_not_done_and_processes_left_behind_are_found() -> None:
    problems = problems_of(replace(SOUND, phase="training", rounds=(1,), left=("77 python",)), SOUND)
    assert len(problems) == 3


def test_a_counter_of_two_messages_is_found_also_across_runs_and_a_repetition_is_none() -> None:
    counters = Counters()
    first = {"sender": "a", "n": 5, "id": "x"}
    assert counters.reused([first, first, {"sender": "b", "n": 5, "id": "y"}]) == []
    assert counters.reused([{"sender": "a", "n": 0, "id": "will-1"}, {"sender": "a", "n": 0, "id": "will-2"}]) == []
    (problem,) = counters.reused([{"sender": "a", "n": 5, "id": "z"}])
    assert problem == "counter 5 of a was used for message x and for z"
