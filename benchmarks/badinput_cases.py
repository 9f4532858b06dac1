"""What a case of bad input is, and what becomes of it.

Owns the verdicts; what is sent is said beside each kind of case.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

MAX_ANSWER = 8000
"""Characters; more is no answer that anybody reads."""
Verdict = Literal["refused", "accepted", "crashed", "unclear"]


class AcceptedError(Exception):
    """Something took the bad input for good."""


class CrashedError(Exception):
    """Something ended, or ended in a way that is not documented."""


@dataclass(frozen=True, slots=True)
class Case:
    """One bad input.

    Attributes:
        kind: What sort of input it is.
        name: What is wrong with it.
        try_: Hands it over, and returns the answer; raises `AcceptedError` or `CrashedError`.
        says: A regular expression that the documented answer fits.
    """

    kind: str
    name: str
    try_: Callable[[], str]
    says: str


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case."""

    case: Case
    verdict: Verdict
    answer: str


def judge(case: Case) -> Result:
    """Hand one case over."""
    try:
        answer = case.try_()
    except AcceptedError as error:
        return Result(case, "accepted", str(error))
    except CrashedError as error:
        return Result(case, "crashed", str(error))
    except Exception as error:  # noqa: BLE001 - whatever else comes out is what this looks for
        return Result(case, "crashed", f"{type(error).__name__}: {error}")
    fits = re.search(case.says, answer) is not None and _harmless(answer)
    return Result(case, "refused" if fits else "unclear", answer)


def _harmless(answer: str) -> bool:
    """Whether a person can read it in a terminal: what a stranger wrote could be endless, or hold escape sequences."""
    return len(answer) <= MAX_ANSWER and all(char.isprintable() or char in "\n\t" for char in answer)


def count(results: Iterable[Result], *verdicts: Verdict) -> int:
    """How many ended so."""
    return sum(result.verdict in verdicts for result in results)
