"""The managed broker is started again when it ends, with a wait that grows."""

from itertools import pairwise

from fedpipe_coordinator.broker.errors import BrokerDiedError, BrokerError
from fedpipe_coordinator.broker.watch import STEADY_S, WAIT_MAX_S, BrokerWatch


class Fragile:
    """A broker that can be started `lives` times."""

    def __init__(self, lives: int) -> None:
        self.lives, self.is_alive, self.tried, self.trimmed = lives, True, 0, 0

    def revive(self) -> str:
        self.tried += 1
        if not self.lives:
            raise BrokerDiedError("it ended with code 1")
        self.lives -= 1
        self.is_alive = True
        return "out of memory"

    def trim_log(self) -> None:
        self.trimmed += 1


def _tries(broker: Fragile, watch: BrokerWatch, begin: float, seconds: float) -> list[float]:
    """The times at which it was tried to start it, looking ten times a second."""
    found = []
    for tenth in range(int(10 * seconds)):
        before, now = broker.tried, begin + tenth / 10
        watch.look(now)
        if broker.tried > before:
            found.append(now - begin)
    return found


def test_a_broker_that_ends_runs_again_at_the_next_look_and_its_last_words_are_told() -> None:
    said: list[str] = []
    broker = Fragile(1)
    watch = BrokerWatch(broker, said.append)
    watch.look(0.0)
    assert (broker.tried, said) == (0, [])
    broker.is_alive = False
    watch.look(0.5)
    assert broker.is_alive
    assert "out of memory" in said[0]


def test_the_wait_between_attempts_grows_to_a_few_seconds_and_the_reason_is_told_once() -> None:
    said: list[str] = []
    broker = Fragile(0)
    broker.is_alive = False
    times = _tries(broker, BrokerWatch(broker, said.append), 0.0, 40)
    waits = [after - before for before, after in pairwise(times)]
    assert times[0] == 0
    assert waits[0] < 0.5
    assert all(before <= after + 0.11 for before, after in pairwise(waits))
    assert abs(waits[-1] - WAIT_MAX_S) < 0.11
    assert len(said) == 1


def test_a_broker_that_was_steady_is_started_again_at_once() -> None:
    broker = Fragile(100)
    watch = BrokerWatch(broker, lambda _: None)
    for _ in range(4):
        broker.is_alive = False
        _tries(broker, watch, 0.0, 10)
    _tries(broker, watch, 100.0, STEADY_S + 1)
    broker.is_alive = False
    assert _tries(broker, watch, 200.0, 1) == [0.0]
    broker.is_alive = False
    assert _tries(broker, watch, 201.0, 1)[0] < 0.5
    assert broker.trimmed > 1


class Cramped(Fragile):
    """A broker whose log cannot be kept short."""

    def trim_log(self) -> None:
        super().trim_log()
        raise BrokerError("no space left")


def test_a_log_that_cannot_be_kept_short_is_told_once_and_ends_nothing() -> None:
    said: list[str] = []
    broker = Cramped(0)
    _tries(broker, BrokerWatch(broker, said.append), 0.0, 200)
    assert broker.trimmed > 2
    assert said == ["the broker's log is not kept short: no space left"]
