"""A whole federation for tests: real processes in a folder of their own, with their broker on a free loopback port.

Owns starting, asking and ending them, and waiting with a limit; what must hold of a federation is the tests' matter.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest

from fedpipe_coordinator.broker.managed import free_port
from fedpipe_coordinator.demo.joining import join_all
from fedpipe_coordinator.demo.processes import Child, Children
from fedpipe_coordinator.home import Home

LIMIT_S = 180.0
"""The machine may be busy with other things; every wait ends as soon as its condition holds."""
POLL_S = 0.05
SECRET = "w7 patient4711 w9"
"""Part of a row of every broken file; it must not be in anything that leaves the silo."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a finished command left."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Both streams, with every run of white space as one space: rich breaks lines where it likes."""
        return " ".join(f"{self.out}\n{self.err}".split())

    def json(self) -> Any:
        """The result on stdout, of a command that must have succeeded."""
        assert self.code == 0, self
        return json.loads(self.out)


def call(*arguments: str | Path, environment: Mapping[str, str] | None = None, limit_s: float = LIMIT_S) -> Ended:
    """Run `python ARGUMENTS` to its end."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})},
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def fedpipe(*arguments: str | Path) -> Ended:
    """Run `fedpipe ARGUMENTS` to its end."""
    return call("-m", "fedpipe_coordinator", *arguments)


def fedpipe_agent(*arguments: str | Path) -> Ended:
    """Run `fedpipe-agent ARGUMENTS` to its end."""
    return call("-m", "fedpipe_agent", *arguments)


def wait_for(
    what: str, condition: Callable[[], object], watched: Iterable[Child] = (), *, limit_s: float = LIMIT_S
) -> None:
    """Wait until a condition holds; fail with the logs if it does not in time, or if a watched process ends."""
    children = tuple(watched)
    deadline = time.monotonic() + limit_s
    while not condition():
        dead = [child.name for child in children if child.process.poll() is not None]
        if dead or time.monotonic() > deadline:
            why = f"{', '.join(dead)} ended" if dead else f"not within {limit_s:.0f} s"
            logs = "\n".join(f"--- {child.log}\n{child.log.read_text(errors='replace')[-4000:]}" for child in children)
            pytest.fail(f"{what}: {why}\n{logs}")
        time.sleep(POLL_S)


def kill(child: Child) -> None:
    """End a process and all of its group at once, as a power cut would."""
    os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait()


def child_of(pid: int) -> int:
    """The one child that a process has."""
    (found,) = children_of(pid)
    return found


def children_of(pid: int) -> list[int]:
    """The children that a process's first thread has started, and that it has not yet taken leave of."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines so far; none where there is no file yet. A line that is being written does not count."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@dataclass
class Federation:
    """One federation in a folder; use it in a `with` block, which ends all of its processes.

    `secure`: with keys, as in production; else without TLS and seals, which is what tests of other things start faster.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    secure: bool = False
    children: dict[str, Child] = field(default_factory=dict)
    _all: Children = field(default_factory=Children)

    @property
    def home(self) -> Path:
        """What `fedpipe init` makes."""
        return self.folder / "home"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._all.__exit__(None, None, None)

    def ask(self, verb: str, *arguments: str | Path) -> Ended:
        """Run a verb of `fedpipe` on this federation."""
        return fedpipe(verb, *arguments, "--home", self.home)

    def init(self, *more: str) -> None:
        """`fedpipe init`."""
        security = [] if self.secure else ["--insecure"]
        ended = fedpipe("init", self.home, "--name", "tests", "--port", str(self.port), *security, *more)
        assert ended.code == 0, ended

    def up(self) -> Child:
        """`fedpipe up`; returns at once."""
        return self._start("coordinator", ["fedpipe_coordinator", "up", str(self.home)])

    def write_agent(self, name: str, datasets: Mapping[str, Path], limits: Mapping[str, float] | None = None) -> Path:
        """Write an agent's settings into a folder of its own, and enrol it where the federation is secure."""
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        lines = [f'name = "{name}"', 'federation = "tests"']
        if not self.secure:
            lines += ["[broker]", 'host = "127.0.0.1"', f"port = {self.port}", "insecure = true"]
        lines += ["[datasets]", *(f"{key} = {{ path = {json.dumps(str(path))} }}" for key, path in datasets.items())]
        lines += ["[limits]", *(f"{key} = {value}" for key, value in {"threads": 1, **(limits or {})}.items())]
        path = folder / "agent.toml"
        path.write_text("\n".join(lines) + "\n")
        if self.secure and not (folder / "bundle.json").exists():
            join_all(Home(self.home), {name: path}, datetime.now(UTC))
        return path

    def start_agent(self, name: str, datasets: Mapping[str, Path], limits: Mapping[str, float] | None = None) -> Child:
        """`fedpipe-agent run` with settings of its own; returns at once."""
        path = self.write_agent(name, datasets, limits)
        return self._start(name, ["fedpipe_agent", "run", "--config", str(path)])

    def start_module(self, name: str, *arguments: str | Path) -> Child:
        """`python -m ARGUMENTS` in the place of an agent or the coordinator; returns at once."""
        return self._start(name, [str(argument) for argument in arguments])

    def wait_for_agents(self, *names: str) -> None:
        """Wait until `fedpipe agents` shows them online."""
        watched = [self.children["coordinator"], *(self.children[name] for name in names)]

        def there() -> bool:
            ended = self.ask("agents", "--format", "json")
            agents = json.loads(ended.out)["agents"] if ended.code == 0 else {}
            return all(agents.get(name, {}).get("online") for name in names)

        wait_for(f"agents {names} online", there, watched)

    def submit(self, job: Path, *overrides: str) -> str:
        """`fedpipe run` without waiting; the run's name."""
        ended = self.ask("run", job, *(part for text in overrides for part in ("-s", text)))
        assert ended.code == 0, ended
        return ended.out.strip()

    def run_folder(self, run: str) -> Path:
        """Where a run's files are."""
        return self.home / "runs" / run

    def audit(self, run: str, kind: str | None = None, agent: str | None = None) -> list[dict[str, Any]]:
        """What a run's audit record says so far, or the part of one kind or agent."""
        return [
            line
            for line in read_lines(self.run_folder(run) / "audit.jsonl")
            if kind in (None, line["kind"]) and agent in (None, line["agent"])
        ]

    def wait_for_audit(self, run: str, kind: str, agent: str | None = None) -> dict[str, Any]:
        """Wait for a line of the audit record; fail at once if the run fails first."""

        def said() -> bool:
            failed = self.audit(run, "run-failed")
            if failed and kind != "run-failed":
                pytest.fail(f"run {run} failed: {failed[0]['text']}")
            return bool(self.audit(run, kind, agent))

        wait_for(f"{kind} of {agent or 'the run'}", said, [self.children["coordinator"]])
        return self.audit(run, kind, agent)[0]

    def _start(self, name: str, arguments: list[str]) -> Child:
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        self.children[name] = self._all.start(name, arguments, log)
        return self.children[name]


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that is over, and what the command that watched it left."""

    name: str
    folder: Path
    watch: Ended

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    def rounds_of(self, agent: str) -> dict[int, dict[str, Any]]:
        """An agent's part of every round in which it has one."""
        return {
            round_["round"]: entry
            for round_ in self.summary["rounds"]
            for entry in round_["agents"]
            if entry["agent"] == agent
        }


@dataclass(frozen=True, slots=True)
class Shared:
    """The federation, and what its runs work on."""

    federation: Federation
    model: Path
    job: Path
    silos: dict[str, Path]

    def watch(self, *overrides: str) -> Finished:
        """`fedpipe run --watch` to its end."""
        settings = (part for text in overrides for part in ("-s", text))
        ended = self.federation.ask("run", self.job, "--watch", *settings)
        runs = sorted((self.federation.home / "runs").iterdir(), key=lambda run: run.stat().st_ctime)
        return Finished(runs[-1].name, runs[-1], ended)


def write_job(path: Path, model: Path) -> Path:
    """A job whose plan no measured rate can change: one batch size and a generous deadline."""
    path.write_text(f"""\
[job]
name = "words"
model = {json.dumps(str(model))}
task = "sequence-classification"
seed = 3

[data]
dataset = "words"
evaluation_examples = 100

[rounds]
number = 2
deadline_s = 100
min_agents = 2

[train]
learning_rate = 0.01
sequence_length = 16
batch_sizes = [4]
examples_per_round = 120
score_batches = 2

[adapter]
global_rank = 4
rank_ladder = [2, 4]

[export]
merged = true
""")
    return path
