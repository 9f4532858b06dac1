"""Which kills are tried: a walk over every hook that was seen, then random ones. Pure, and repeated by its seed."""

import fnmatch
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Hits = Mapping[str, Mapping[str, int]]
"""How often each process (by label, as "agent-agent-1") passed each hook."""
_SESSION = ("publish-", "received-", "delivered-", "connected", "disconnected")


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill of a trial.

    Attributes:
        label: The process that passes the hook.
        hook: The hook's name.
        nth: The passing that is the last one.
        broker: It is the broker that is killed, not the process that passes.
        wipe: The broker's database is removed before it starts again.
    """

    label: str
    hook: str
    nth: int = 1
    broker: bool = False
    wipe: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        if not self.broker:
            return self.hook
        return f"broker@{self.hook}" + (" (emptied)" if self.wipe else "")


@dataclass(frozen=True, slots=True)
class Trial:
    """One run with its kills, each ordered when the one before was carried out; the last is the one on trial.

    `fresh`: the first order is given before the fleet starts for the first time.
    """

    kills: tuple[Kill, ...]
    hits: int = 0
    fresh: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.kills[-1].name


def of_session(hook: str) -> bool:
    """Whether a hook is one of the session with the broker."""
    return hook.split(":", 1)[1].startswith(_SESSION)


@dataclass
class Atlas:
    """All hooks that were seen, and how to reach them.

    Attributes:
        run: Hits of the undisturbed run.
        start: Hits while the processes started.
    """

    run: Hits
    start: Hits
    known: set[str] = field(default_factory=set)

    def walk(self, seed: int, pattern: str = "*") -> list[Trial]:
        """One trial per hook, and one per hook of a session with the broker as the victim."""
        draw = random.Random(f"walk/{seed}")
        trials = []
        for hook in sorted({hook for hits in (self.run, self.start) for each in hits.values() for hook in each}):
            self.known.add(hook)
            trials.append(self._reach(hook, draw))
        for number, hook in enumerate(sorted({h for each in self.run.values() for h in each if of_session(h)})):
            kill, hits = self._pick(hook, draw)
            trials.append(Trial((Kill(kill.label, hook, kill.nth, broker=True, wipe=number % 2 == 1),), hits))
        return [trial for trial in trials if fnmatch.fnmatch(trial.name, pattern)]

    def at_random(self, seed: int, number: int) -> list[Trial]:
        """Kills at random hooks: the victim is drawn first, so that every kind has its share."""
        draw = random.Random(f"random/{seed}")
        hooks = sorted({hook for each in self.run.values() for hook in each})
        kinds: dict[str, list[str]] = {}
        for hook in hooks:
            kinds.setdefault(hook.split(":", 1)[0], []).append(hook)
        kinds["broker"] = [hook for hook in hooks if of_session(hook)]
        trials = []
        for _ in range(number):
            kind = draw.choice(sorted(kinds))
            kill, hits = self._pick(draw.choice(kinds[kind]), draw)
            if kind == "broker":
                kill = Kill(kill.label, kill.hook, kill.nth, broker=True, wipe=draw.random() < 0.5)
            trials.append(Trial((kill,), hits))
        return trials

    def discovered(self, trial: Trial, hits: Hits) -> list[Trial]:
        """Trials for hooks that were passed for the first time after the kills of `trial`."""
        found = []
        for label, each in sorted(hits.items()):
            for hook in sorted(each):
                if hook not in self.known:
                    self.known.add(hook)
                    found.append(Trial((*trial.kills, Kill(label, hook)), each[hook]))
        return found

    def again(self, trial: Trial, seed: int) -> list[Trial]:
        """Other ways to a hook that was not reached: its first passing, a restart, a first start, the broker's."""
        kill, draw = trial.kills[-1], random.Random(f"again/{seed}/{trial.name}")
        if kill.broker:
            return []
        target, first = Kill(kill.label, kill.hook), self._first("coordinator-coordinator", draw)
        return [
            *([Trial((target,), trial.hits)] if kill.nth > 1 else []),
            Trial((self._first(kill.label, draw), target), trial.hits),
            Trial((target,), trial.hits, fresh=True),
            Trial((Kill(first.label, first.hook, first.nth, broker=True), target), trial.hits),
        ]

    def _reach(self, hook: str, draw: random.Random) -> Trial:
        if any(hook in each for each in self.run.values()):
            kill, hits = self._pick(hook, draw)
            return Trial((kill,), hits)
        # Passed at a start only: end the process in mid-run first.
        label = draw.choice(sorted(label for label, each in self.start.items() if hook in each))
        return Trial((self._first(label, draw), Kill(label, hook)), self.start[label][hook])

    def _first(self, label: str, draw: random.Random) -> Kill:
        """A kill in mid-run."""
        passed = self.run.get(label, {})
        steady = sorted(hook for hook, hits in passed.items() if hits > 1 and hook.endswith(":before"))
        hook = draw.choice(steady or sorted(passed) or ["none"])
        return Kill(label, hook, draw.randint(1, passed.get(hook, 1)))

    def _pick(self, hook: str, draw: random.Random) -> tuple[Kill, int]:
        label = draw.choice(sorted(label for label, each in self.run.items() if hook in each))
        hits = self.run[label][hook]
        return Kill(label, hook, draw.randint(1, hits)), hits


def count_hits(lines: Iterable[str]) -> dict[str, int]:
    """How often each hook is in a process's list."""
    return dict(Counter(lines))


def totals(hits: Hits) -> dict[str, int]:
    """Hits of every hook over all processes."""
    return dict(sum((Counter(each) for each in hits.values()), Counter()))


def by_kind(hooks: Sequence[str]) -> dict[str, int]:
    """How many hooks each kind of process has."""
    return dict(Counter(hook.split(":", 1)[0] for hook in hooks))
