"""The numbers of this agent's messages: rising, and none used twice, whatever restart or damage comes between.

A process begins with the microseconds of the wall clock where these are more than what was reserved before: a folder
that was put back from a backup does not repeat numbers then. Nobody compares a number with a clock of his own.
Owns how many are reserved ahead of their use. That is kept in two places, the file `counter` and the journal, and the
higher one counts: one of them may be lost, damaged or put back from a backup.
"""

from collections.abc import Callable
from pathlib import Path

from fedpipe_agent.durable import write_durably
from fedpipe_agent.errors import StateFolderError, unusable
from fedpipe_agent.journal import Journal
from fedpipe_wire.envelope import MAX_COUNTER

COUNTER_BLOCK = 1000
HIGHEST = MAX_COUNTER - COUNTER_BLOCK
"""Above this no block can be reserved."""


class Counter:
    """Numbers from 1, for one thread. `file` is the one of the two places, `journal` the other.

    `wall_us` gives microseconds since the epoch, as this machine believes.
    """

    def __init__(self, file: Path, journal: Journal, wall_us: Callable[[], int]) -> None:
        self._file, self._journal, self._wall_us = file, journal, wall_us
        self._used = 0
        self._reserved = 0

    def check(self) -> None:
        """See whether numbers can be given, before anything is begun; raises as `next`."""
        self._reserved_before()

    def next(self) -> int:
        """A number that was never given before.

        Raises:
            StateFolderError: if it is not known which were reserved before, or no more can be reserved.
        """
        if self._used == self._reserved:
            used = self._reserved_before()
            if not self._reserved:
                used = max(used, min(self._wall_us(), HIGHEST // 2))
            try:
                write_durably(self._file, str(used + COUNTER_BLOCK))
            except OSError as error:
                raise unusable(self._file.parent, error) from error
            self._journal.reserve(used + COUNTER_BLOCK)
            self._used, self._reserved = used, used + COUNTER_BLOCK
        self._used += 1
        return self._used

    def _reserved_before(self) -> int:
        noted, (written, problem) = self._journal.reserved(), self._read()
        known = [number for number in (noted, written) if number is not None]
        if known and max(known) > HIGHEST:
            raise StateFolderError(
                f"{max(known)} message numbers are said to be used up by {self._journal.path}, at most {HIGHEST} may "
                "be: restore it, or enrol this agent anew with an empty state folder"
            )
        if known:
            return max(known)
        if problem or self._journal.load() is not None:
            # Beginning again at 0 would let old messages pass for new ones.
            raise StateFolderError(
                f"{self._file} {problem or 'is not there'}, and {self._journal.path.name} beside it has no number "
                "either: restore the file, or enrol this agent anew with an empty state folder"
            )
        return 0

    def _read(self) -> tuple[int | None, str]:
        """The number in the file, or what is wrong with it; neither where there is no file."""
        try:
            text = self._file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None, ""
        except UnicodeDecodeError:
            return None, "does not hold a number"
        except OSError as error:
            return None, f"cannot be read ({error.strerror})"
        number = int(text) if text.isdigit() and len(text) <= len(str(HIGHEST)) else -1
        if not 0 <= number <= HIGHEST:
            return None, f"does not hold a number from 0 to {HIGHEST}, but {text[:40]!r}"
        return number, ""
