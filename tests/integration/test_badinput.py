"""A short run of the table of bad input: all of what the gate gets, and a part of what travels and what is in files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mosquitto_support import mosquitto_or_skip

from benchmarks import (
    badinput_bundles,
    badinput_files,
    badinput_orders,
    badinput_packets,
    badinput_requests,
    badinput_rounds,
    badinput_topics,
    badinput_updates,
    badinput_words,
)
from benchmarks.badinput import MAX_GROWTH_MIB, MIB, Table, check_logs, check_recorded
from benchmarks.badinput_cases import AcceptedError, Case, CrashedError, count, judge
from benchmarks.badinput_commands import Commands
from benchmarks.badinput_tyrant import open_court
from benchmarks.badinput_yard import Growth, open_fleet, open_yard

EVERY = 8
"""Of so many live cases, one is tried here."""


def _answer(text: str) -> Callable[[], str]:
    return lambda: text


def _raise(error: Exception) -> Callable[[], str]:
    def try_() -> str:
        raise error

    return try_


@pytest.mark.parametrize(
    ("try_", "verdict"),
    [
        (_answer("it has 5 bytes, 4 are taken"), "refused"),
        (_answer("something went wrong"), "unclear"),
        (_answer("it has 5 bytes \x1b[2J"), "unclear"),
        (_answer("it has 5 bytes" + "x" * 10_000), "unclear"),
        (_raise(AcceptedError("it was taken")), "accepted"),
        (_raise(CrashedError("it ended")), "crashed"),
        (_raise(RuntimeError("unforeseen")), "crashed"),
    ],
)
def test_a_case_is_refused_by_its_documented_words_alone(try_: Callable[[], str], verdict: str) -> None:
    assert judge(Case("k", "n", try_, r"\d bytes")).verdict == verdict


def test_every_bad_update_is_refused_at_the_gate_and_a_good_one_is_not(tmp_path: Path) -> None:
    badinput_updates.check_good(tmp_path)
    cases = badinput_updates.cases(tmp_path)
    table = Table(frozenset({"update"}))
    table.judge_all(cases)
    assert count(table.results, "refused") == len(cases) >= 25, _failures(table)


def test_a_taken_file_is_told_from_a_refused_one(tmp_path: Path) -> None:
    """The harness itself: a good job is not called refused."""
    commands = Commands(tmp_path)
    badinput_files.cases(commands)
    kind = badinput_files.KINDS[0]
    (tmp_path / kind.file).write_text(badinput_files.JOB)
    with pytest.raises(AcceptedError, match="exit code 13"):
        commands.refusal(kind.arguments, (kind.refused,), kind.taken)


@pytest.mark.parametrize("module", [badinput_files, badinput_requests, badinput_bundles])
def test_bad_files_are_refused_by_the_command_lines(module: object, tmp_path: Path) -> None:
    cases: list[Case] = module.cases(Commands(tmp_path))  # type: ignore[attr-defined]  # one of the three modules
    wanted = ("a FIFO that nobody writes to", "a name with a terminal escape")
    table = Table(frozenset(case.kind for case in cases))
    table.judge_all({case.name: case for case in cases if case.name in wanted}.values())
    assert count(table.results, "refused") == len(table.results) == len(wanted), _failures(table)


@pytest.mark.timeout(300)
def test_a_coordinator_and_an_agent_refuse_bad_words_and_serve_on(tmp_path: Path) -> None:
    mosquitto_or_skip()
    table = Table(frozenset({"packet", "topic", "profile", "report", "offer", "order"}))
    (tmp_path / "yard").mkdir()
    with open_fleet(tmp_path / "yard") as fleet:
        yard = open_yard(fleet)
        growth = Growth(fleet.pid("coordinator"))
        with pytest.raises(AcceptedError):  # what nobody has changed is taken: the harness would see it
            badinput_packets.Sender(yard).outside(lambda properties: properties)
        assert yard.mallory.offer(badinput_rounds.good(yard.mallory.in_a_round())).accepted
        for module in (badinput_packets, badinput_topics, badinput_words, badinput_rounds):
            table.judge_all(module.cases(yard)[::EVERY])
        yard.check_serving()
        check_recorded(yard)
        assert growth.peak_bytes() < MAX_GROWTH_MIB * MIB
        yard.mallory.leave()
    check_logs(tmp_path / "yard")
    (tmp_path / "court").mkdir()
    with open_fleet(tmp_path / "court") as fleet, open_court(fleet) as court:
        with pytest.raises(AcceptedError):
            badinput_orders.plan_of(court, {})
        table.judge_all(badinput_orders.cases(court)[::EVERY])
        court.check_serving()
    check_logs(tmp_path / "court")
    assert count(table.results, "refused") == len(table.results) > 30, _failures(table)


def _failures(table: Table) -> str:
    return "\n".join(
        f"{each.verdict}: {each.case.kind}: {each.case.name}: {each.answer}"
        for each in table.results
        if each.verdict != "refused"
    )
