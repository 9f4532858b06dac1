"""`python -m skewed_agent DAYS run --config agent.toml`: an agent whose wall clock is wrong by so many days.

Everything that this process asks the time of is moved before the agent is imported; the monotonic clock is not.
"""

import datetime as dt
import sys
import time

SKEW_S = float(sys.argv.pop(1)) * 86_400
_time = time.time


class Skewed(dt.datetime):
    """The class `datetime` of a machine whose clock is wrong."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> "Skewed":
        return cls.fromtimestamp(_time() + SKEW_S, tz)


time.time = lambda: _time() + SKEW_S
dt.datetime = Skewed  # type: ignore[misc]  # the point of this program

from fedpipe_agent.cli import main  # noqa: E402 - the clocks must be wrong before

main()
