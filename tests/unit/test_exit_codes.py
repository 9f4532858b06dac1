"""Every exit code has a help and a section in the reference, and both sides agree on those they share."""

import re
from enum import IntEnum
from pathlib import Path

import pytest

from fedpipe_agent.exit_codes import ExitCode as AgentExitCode
from fedpipe_coordinator.exit_codes import ExitCode as CoordinatorExitCode

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md"
SHARED = {0, 1, 2}
CODES: list[AgentExitCode | CoordinatorExitCode] = [*CoordinatorExitCode, *AgentExitCode]


def _sections() -> dict[tuple[int, str], str]:
    parts = re.split(r"^### (\d+) (\w+)$", REFERENCE.read_text(), flags=re.MULTILINE)
    triples = zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    return {(int(number), name): text.split("\n## ")[0].strip() for number, name, text in triples}


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{type(code).__module__}.{code.name}")
def test_every_code_has_help_and_a_section(code: AgentExitCode | CoordinatorExitCode) -> None:
    assert code.help.endswith(".")
    assert len(_sections()[code.value, code.name]) > 30


def test_no_section_is_about_a_code_that_is_gone() -> None:
    assert set(_sections()) == {(code.value, code.name) for code in CODES}


def test_shared_codes_mean_the_same_and_no_other_number_is_shared() -> None:
    def named(codes: type[IntEnum]) -> dict[int, str]:
        return {code.value: code.name for code in codes}

    agent, coordinator = named(AgentExitCode), named(CoordinatorExitCode)
    assert set(agent) & set(coordinator) == SHARED
    assert all(agent[number] == coordinator[number] for number in SHARED)


def test_a_code_is_the_number_that_a_process_ends_with() -> None:
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(AgentExitCode.IDENTITY_IN_USE)
    assert caught.value.code == 44
    assert all(0 <= code < 126 for code in CODES)  # from 126 on, the shell has meanings of its own
