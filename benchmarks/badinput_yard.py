"""A real federation with keys for the live cases: coordinator, Mosquitto, one good agent at work, and hostile ones.

Owns enrolling them, what was said of the last case, and whether everybody still serves. The good agent works on a run
of echoes without end; a round of it goes on as soon as mallory has settled, so that the cases set the pace.
"""

import hashlib
import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks import processes
from benchmarks.badinput_cases import CrashedError
from benchmarks.badinput_mallory import Mallory
from benchmarks.echo_trainer import model_name
from benchmarks.fleet import DATASET, FEDERATION, Fleet, FleetSettings, JobSize
from benchmarks.launch import Seams
from fedpipe_agent import key_folder
from fedpipe_agent.credentials import join
from fedpipe_coordinator.federation import open_office
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.home import Home
from fedpipe_wire.enrolment import encode, make_request
from fedpipe_wire.sealing import Sealer
from fedpipe_wire.tls import client_context
from fedpipe_wire.topics import Topics

ROUNDS = 1_000_000
WEIGHTS, WIDTH, RANK = 2, 64, 4
MODEL = model_name(WEIGHTS, WIDTH, WIDTH)
_FENCE = re.compile(
    r"refused what came on \S+ as of mallory \(stale\): it is of run fence-\d+, which is not known here"
)
_TRACES = re.compile(r"Traceback \(most recent|This is a defect|could not be worked with|unexpected error")


HOSTILE = ("mallory", *(f"eve-{number}" for number in range(1, 9)))
"""Agents with real certificates."""


def enrol_agent(home: Path, state: Path, name: str) -> key_folder.Keys:
    """Make an agent's keys in its state folder, let it in, and let it join."""
    now = datetime.now(UTC)
    place = Home(home)
    office = open_office(place, load_federation(place.settings), now)
    keys = key_folder.make_keys(state, key_folder.CURRENT)
    request = make_request(name, keys.login, keys.signing)
    done = office.let_in(request, now, days=2)
    bundle = state.parent / f"{name}.bundle.json"
    bundle.write_bytes(encode(done.bundle))
    join(state, name, None, bundle, lambda _found, _known: None, now)
    return keys


def hostile_state(fleet: Fleet, name: str) -> Path:
    """Where a hostile agent's keys lie."""
    return fleet.folder / "hostile" / name / "state"


class Log:
    """What a process has said since it was asked last; lines that fit `besides` are left out."""

    def __init__(self, path: Path, besides: str = "(?!)") -> None:
        self._path, self._read, self._besides = path, 0, re.compile(besides)

    def news(self) -> str:
        """The new lines, as one; rich breaks lines where it likes."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
            self._read = file.tell()
        lines = data.decode(errors="backslashreplace").splitlines()
        return " ".join(" ".join(line for line in lines if not self._besides.match(line)).split())


@dataclass
class Growth:
    """How far a process grows beyond what it held when this was made."""

    pid: int
    before: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = processes.resident_bytes(self.pid)
        processes.watch_peak(self.pid)

    def peak_bytes(self) -> int:
        """The most since then."""
        return processes.resident_bytes(self.pid, peak=True) - self.before


@dataclass
class Yard:
    """The federation at work; made by `open_yard`.

    Attributes:
        fleet: Coordinator and good agent.
        mallory: An agent of the run.
        run: The good agent's work.
        log: Of the coordinator.
    """

    fleet: Fleet
    mallory: Mallory
    run: str
    log: Log
    _heads: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def refused(self) -> dict[str, int]:
        """How many packets the coordinator has refused, by fault."""
        return dict(self.fleet.ask({"op": "status"}).get("refused", {}))

    def said_of(self, act: Callable[[], None]) -> str:
        """Do something, and tell what the coordinator refused because of it and said of it; "nothing" if it did not.

        Raises:
            CrashedError: if it said that something went wrong in itself.
        """
        before = self.refused()
        self.log.news()
        act()
        self.mallory.fence()
        after = self.refused()
        after["stale"] -= 1  # the fence itself
        faults = [f"[{name}]" for name in sorted(after) if after[name] > before.get(name, 0)]
        text = self.log.news()
        self.check_sane(text)
        text = _FENCE.sub("", text).strip()
        return " ".join((*faults, text)).strip() or "nothing"

    @staticmethod
    def check_sane(text: str) -> None:
        """Raise CrashedError where a log tells of a defect."""
        if _TRACES.search(text):
            raise CrashedError(f"the log says: {text[-600:]}")

    def check_serving(self) -> None:
        """One whole round of the good agent, and the answer that it is there.

        Raises:
            CrashedError: if there is none.
        """
        before = self.mallory.in_a_round().round
        task = self.mallory.let_go()
        agents = self.fleet.ask({"op": "agents"}).get("agents", {})
        phase = self.fleet.status(self.run).get("phase")
        if task.round <= before or not agents.get("agent-1", {}).get("online") or phase != "training":
            raise CrashedError(f"after round {before}: round {task.round}, {phase}, {list(agents)}")

    def hostile(self, name: str) -> Mallory:
        """One more agent that may say anything, of the names of `HOSTILE`; not connected yet."""
        return hostile(self.fleet, name)


def hostile(fleet: Fleet, name: str) -> Mallory:
    """An agent with real certificates that may say anything."""
    identity = hostile_state(fleet, name) / key_folder.CURRENT
    keys = key_folder.read_keys(identity)
    files = (key_folder.AUTHORITY, key_folder.LOGIN_CERTIFICATE, key_folder.LOGIN_KEY)
    counter = itertools.count(time.time_ns() // 1000)
    sealer = Sealer(name, partial(next, counter), keys.signing, hashlib.sha256(name.encode()).hexdigest()[:32])
    tls = partial(client_context, *(identity / file for file in files))
    return Mallory(fleet.port, Topics(FEDERATION), sealer, DATASET, tls)


def open_fleet(folder: Path) -> Fleet:
    """A fleet with one good agent, not started."""
    settings = FleetSettings(1, chunk_kib=16, silence_s=5.0, secure=True)
    return Fleet(folder, settings, Seams(folder=str(folder), tell_all=True))


def open_yard(fleet: Fleet) -> Yard:
    """Start a fleet's processes, its run without end, and mallory in it."""
    for name in HOSTILE:
        enrol_agent(fleet.home, hostile_state(fleet, name), name)
    fleet.start()
    run = fleet.submit(fleet.write_job(JobSize(MODEL, ROUNDS, RANK, min_agents=1)))
    mallory = hostile(fleet, "mallory")
    mallory.join()
    good = rf"{re.escape(run)}: (agent-1|round \d+|before training)"
    yard = Yard(fleet, mallory, run, Log(fleet.folder / "logs" / "coordinator.log", good))
    for _ in range(3):  # what a round loads once is no growth
        mallory.let_go()
    return yard
