"""A federation of real processes for the benchmarks: coordinator, managed Mosquitto, agents, a folder each.

Owns starting them through `launch.py`, asking the coordinator, and ending them. Whoever dies is started again when
`revive` is called, as systemd would.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from benchmarks import processes
from benchmarks.launch import Seams, command
from fedpipe_coordinator.broker.managed import free_port
from fedpipe_coordinator.config import load_job
from fedpipe_coordinator.control import ControlError, ask
from fedpipe_coordinator.demo.joining import join_all
from fedpipe_coordinator.demo.processes import Child, Children
from fedpipe_coordinator.federation import create_federation
from fedpipe_coordinator.home import Home

DATASET = "echo"
FEDERATION = "benchmark"
POLL_S = 0.02
OVER = ("done", "failed", "stopped")


class FleetError(RuntimeError):
    """The fleet did not do in time what it should; the message has the end of every log."""


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """A fleet's size and how its blobs travel; `secure`: with TLS, certificates and seals."""

    agents: int
    chunk_kib: int = 256
    silence_s: float = 120.0
    secure: bool = False


@dataclass(frozen=True, slots=True)
class JobSize:
    """What a job trains; every weight gets all components, so an update is as large as the adapter."""

    model: str
    rounds: int
    rank: int
    min_agents: int
    deadline_s: float = 100.0
    seed: int = 3
    task: str = "causal-lm"


@dataclass
class Fleet:
    """Use it in a `with` block, which ends all of its processes.

    Args:
        folder: For everything; must exist.
        settings: Size and transfers.
        seams: What is put into the processes.
        dataset: What the agents' dataset is; a file of one line where there is none.
    """

    folder: Path
    settings: FleetSettings
    seams: Seams
    dataset: Path | None = None
    port: int = field(default_factory=free_port)
    starts: dict[str, int] = field(default_factory=dict)
    _children: Children = field(default_factory=Children)
    _running: dict[str, Child] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The federation's folder."""
        return self.folder / "home"

    @property
    def agents(self) -> list[str]:
        """The agents' names."""
        return [f"agent-{number}" for number in range(1, self.settings.agents + 1)]

    @property
    def names(self) -> list[str]:
        """The names of all that systemd would start."""
        return ["coordinator", *self.agents]

    def __enter__(self) -> Self:
        self._write_settings()
        return self

    def __exit__(self, *error: object) -> None:
        self._children.__exit__(None, None, None)

    # --- processes ----------------------------------------------------------------------------------------------

    def start(self, limit_s: float = 60.0) -> None:
        """Start all, and wait until the coordinator sees every agent.

        Raises:
            FleetError: if one is not there within `limit_s`.
        """
        for name in self.names:
            self.start_one(name)
        self.wait("all agents online", self.is_whole, limit_s)

    def start_one(self, name: str) -> Child:
        """Start the coordinator or an agent."""
        kind: Any = "coordinator" if name == "coordinator" else "agent"
        words = ["up", str(self.home)] if kind == "coordinator" else ["run", "--config", str(self._agent_file(name))]
        log = self.folder / "logs" / f"{name}.log"
        child = self._children.start(name, command(kind, name, self.folder / "seams.json", *words), log)
        self._running[name] = child
        self.starts[name] = self.starts.get(name, 0) + 1
        return child

    def revive(self) -> list[str]:
        """Start what has died again; their names."""
        dead = [name for name, child in self._running.items() if child.process.poll() is not None]
        for name in dead:
            self.start_one(name)
        return dead

    def pid(self, name: str) -> int:
        """The process of the coordinator or of an agent."""
        return self._running[name].process.pid

    def exit_code(self, name: str) -> int | None:
        """What a process ended with, None while it runs; negative for a signal."""
        return self._running[name].process.poll()

    def kill(self, name: str) -> None:
        """End a process as a power cut would."""
        os.kill(self.pid(name), signal.SIGKILL)
        self._running[name].process.wait()

    def broker_pid(self) -> int | None:
        """The managed Mosquitto, or None where none runs."""
        found = [pid for pid in processes.children(self.pid("coordinator")) if processes.program(pid) == "mosquitto"]
        return found[0] if found else None

    def trainer_pids(self) -> dict[str, int]:
        """The trainer of every agent that has one."""
        found = {name: processes.children(self.pid(name)) for name in self.agents}
        return {name: pids[0] for name, pids in found.items() if pids}

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The coordinator's answer; empty where none answers now."""
        try:
            return next(ask(self.home, request, timeout_s=10.0), {})
        except ControlError:
            return {}

    def answers(self) -> bool:
        """Whether the coordinator answers."""
        return bool(self.ask({"op": "status"}))

    def is_whole(self) -> bool:
        """Whether the coordinator sees every agent online, with its profile."""
        known = self.ask({"op": "agents"}).get("agents")
        return known is not None and all(known.get(name, {}).get("online") for name in self.agents)

    def submit(self, job: Path) -> str:
        """Give the coordinator a job; the run's name.

        Raises:
            FleetError: if it does not take it.
        """
        reply = self.ask({"op": "run", "job": load_job(job).model_dump(mode="json")})
        if "run" not in reply:
            raise FleetError(f"the coordinator did not take the job: {reply or 'it does not answer'}")
        return str(reply["run"])

    def status(self, run: str) -> dict[str, Any]:
        """How a run stands; empty where the coordinator does not answer or does not know it."""
        runs = self.ask({"op": "status"}).get("runs", [])
        return next((each for each in runs if each["run"] == run), {})

    def run_folder(self, run: str) -> Path:
        """Where a run's files are."""
        return self.home / "runs" / run

    def summary_phase(self, run: str) -> str:
        """The phase that the run's summary tells; empty while there is none."""
        path = self.run_folder(run) / "summary.json"
        return str(json.loads(path.read_text())["phase"]) if path.exists() else ""

    def wait(self, what: str, condition: Callable[[], bool], limit_s: float) -> None:
        """Wait until a condition holds, with nobody dying.

        Raises:
            FleetError: if it does not hold within `limit_s`, or if a process ends first.
        """
        deadline = time.monotonic() + limit_s
        while not condition():
            dead = [name for name in self._running if self.exit_code(name) is not None]
            if dead or time.monotonic() > deadline:
                why = f"{', '.join(dead)} ended" if dead else f"not within {limit_s:.0f} s"
                raise FleetError(f"{what}: {why}\n{self.last_words()}")
            time.sleep(POLL_S)

    def last_words(self) -> str:
        """The end of every log."""
        return "\n".join(f"--- {name}\n{child.last_words()}" for name, child in self._running.items())

    # --- files --------------------------------------------------------------------------------------------------

    def write_job(self, size: JobSize) -> Path:
        """A job whose plan no measured rate can change: one batch size, one rank and a generous deadline."""
        path = self.folder / "job.toml"
        path.write_text(f"""\
[job]
name = "echo"
model = {json.dumps(size.model)}
task = {json.dumps(size.task)}
seed = {size.seed}

[data]
dataset = "{DATASET}"

[rounds]
number = {size.rounds}
deadline_s = {size.deadline_s}
min_agents = {size.min_agents}

[train]
sequence_length = 16
batch_sizes = [4]
examples_per_round = 40

[adapter]
global_rank = {size.rank}
rank_ladder = [{size.rank}]
""")
        return path

    def _agent_file(self, name: str) -> Path:
        return self.folder / name / "agent.toml"

    def _write_settings(self) -> None:
        (self.folder / "logs").mkdir()
        (self.folder / "seams.json").write_text(self.seams.model_dump_json())
        now, secure = datetime.now(UTC), self.settings.secure
        create_federation(
            self.home, name=FEDERATION, host="127.0.0.1", port=self.port, managed=True, insecure=not secure, now=now
        )
        transfer = f"[transfer]\nchunk_kib = {self.settings.chunk_kib}\nsilence_s = {self.settings.silence_s}\n"
        with (self.home / "federation.toml").open("a") as file:
            file.write(transfer)
        dataset = self.dataset
        if dataset is None:
            dataset = self.folder / "echo.jsonl"
            dataset.write_text('{"prompt": "a", "target": "b"}\n')
        plain = f'federation = "{FEDERATION}"\n[broker]\nhost = "127.0.0.1"\nport = {self.port}\ninsecure = true\n'
        for name in self.agents:
            self._agent_file(name).parent.mkdir(mode=0o700)
            self._agent_file(name).write_text(f"""\
name = "{name}"
{"" if secure else plain}
[datasets.{DATASET}]
path = {json.dumps(str(dataset))}

[limits]
threads = {self.seams.threads}

{transfer}""")
        if secure:
            join_all(Home(self.home), {name: self._agent_file(name) for name in self.agents}, now)
