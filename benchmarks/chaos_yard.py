"""A fleet whose processes are killed on order: runs a job, carries out the kills, and gathers what the run left.

Owns the fleet with its order files and listener. It restarts what systemd would restart, and nothing else: a trainer is
its agent's own business, a managed Mosquitto its coordinator's, unless `broker` says that the harness restarts it.
"""

import hashlib
import json
import os
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks import processes
from benchmarks.chaos_checks import Accepted, Aggregation, Counters, Evidence
from benchmarks.chaos_trials import Trial, count_hits
from benchmarks.fleet import OVER, Fleet, FleetError, FleetSettings, JobSize
from benchmarks.hooks import Order, OrderFile
from benchmarks.launch import Seams
from benchmarks.witness import Listener
from fedpipe_coordinator.broker.managed import find_mosquitto

AGENTS, ROUNDS = 4, 6
MARK = "FEDPIPE_BENCHMARK_FLEET"
SETTLE_S = 20.0
QUIET_S = 0.15
BROKER_PATIENCE_S = 2.0


@dataclass
class Outcome:
    """What became of a trial; `late` if it took longer than it may."""

    evidence: Evidence
    problems: list[str]
    fired: int
    seconds: float
    hits: dict[str, dict[str, int]]
    late: bool


@dataclass
class _Rest:
    """When a run that is over may be judged: as soon as all has been quiet for a moment, or after `SETTLE_S`."""

    over_at: float | None = None
    clean_at: float | None = None

    def reached(self, now: float, *, over: bool, clean: bool) -> bool:
        self.over_at = (self.over_at or now) if over else None
        self.clean_at = (self.clean_at or now) if clean else None
        quiet = self.clean_at is not None and now - self.clean_at >= QUIET_S
        return quiet or (self.over_at is not None and now - self.over_at >= SETTLE_S)


@dataclass
class Yard:
    """Use it in a `with` block.

    Args:
        folder: For everything; must be empty.
        job: What every run works on.
        trainer: What the agents start.
        limit_s: How long a run may take, kills included.
        first: A trial whose first order may hold for the first start already.
        restart_broker: The harness starts a Mosquitto again that its coordinator leaves dead.
    """

    folder: Path
    job: JobSize
    first: Trial
    trainer: Any = "echo"
    limit_s: float = 90.0
    restart_broker: bool = False
    dataset: Path | None = None
    counters: Counters = field(default_factory=Counters)
    _stack: ExitStack = field(default_factory=ExitStack)
    _broker_seen: float = 0.0
    _orders: dict[str, OrderFile] = field(default_factory=dict)
    _read: dict[Path, int] = field(default_factory=dict)
    _broker: subprocess.Popen[bytes] | None = None
    _trial: Trial = field(default_factory=lambda: Trial(()))
    _fired: int = 0

    def __enter__(self) -> Self:
        os.environ[MARK] = str(self.folder)
        seams = Seams(folder=str(self.folder), hooks=True, trainer=self.trainer)
        settings = FleetSettings(AGENTS, chunk_kib=4, silence_s=20.0)
        with ExitStack() as stack:
            stack.callback(os.environ.pop, MARK, None)
            self.fleet = stack.enter_context(Fleet(self.folder, settings, seams, dataset=self.dataset))
            self.labels = ["coordinator-coordinator", *(f"agent-{name}" for name in self.fleet.agents)]
            self.labels += [f"trainer-{name}" for name in self.fleet.agents]
            for label in self.labels:
                self._orders[label] = stack.enter_context(OrderFile(self.folder / f"{label}.order"))
            if self.first.fresh:
                self._order(self.first, 0)
            self._start()
            self._listener = stack.enter_context(Listener(self.fleet.port))
            stack.callback(self._end_broker)
            self._job_file = self.fleet.write_job(self.job)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    # --- one run ------------------------------------------------------------------------------------------------

    def run(self, trial: Trial) -> Outcome:
        """One run, with the kills of a trial; none for the undisturbed one.

        Raises:
            FleetError: if no run can be started, or the processes are not all back after it.
        """
        began = time.monotonic()
        self._trial, self._fired = trial, 0
        if not trial.fresh:
            self._clear()
            self._order(trial, 0)
        run = self._submit(began)
        rest = _Rest()
        while (now := time.monotonic()) - began < self.limit_s:
            self._revive()
            over = self.fleet.summary_phase(run) in OVER and self._at_rest()
            if rest.reached(now, over=over, clean=over and not self._left_behind()):
                break
            time.sleep(0.02)
        self._clear()
        evidence, problems = self._gather(run)
        seconds = time.monotonic() - began
        return Outcome(evidence, problems, self._fired, seconds, self.hits(), late=seconds > self.limit_s)

    def hits(self) -> dict[str, dict[str, int]]:
        """What every process passed since the last call."""
        return {label: count_hits(self._news(self.folder / f"{label}.hits")) for label in self.labels}

    def state(self) -> str:
        """What every process is doing, for a person."""
        lines = [f"{name}: pid {self.fleet.pid(name)}, exit {self.fleet.exit_code(name)}" for name in self.fleet.names]
        lines += [f"broker: {self._broker_pid()}", f"trainers: {self.fleet.trainer_pids()}"]
        status = self.fleet.ask({"op": "status"})
        lines.append(f"runs: {json.dumps(status.get('runs', [])[:1])}, online: {status.get('agents_online')}")
        return "\n".join([*lines, self.fleet.last_words()])

    # --- kills --------------------------------------------------------------------------------------------------

    def _order(self, trial: Trial, number: int) -> None:
        if number >= len(trial.kills):
            return
        kill = trial.kills[number]
        victim = (self._broker_pid() or 0) if kill.broker else 0
        database = str(self.fleet.home / "broker" / "mosquitto.db") if kill.wipe else ""
        if not kill.broker or victim:
            self._orders[kill.label].give(Order(kill.hook, kill.nth, victim, database))

    def _revive(self) -> None:
        kills = self._trial.kills
        if self._fired < len(kills) and self._orders[kills[self._fired].label].fired:
            self._fired += 1  # before the victim starts again, which is what the next kill may be about
            self._order(self._trial, self._fired)
        if self.fleet.exit_code("coordinator") is not None:
            self._end_broker()  # the coordinator starts its own
        self.fleet.revive()
        if not self.restart_broker:
            return
        if self._broker_pid() is not None:
            self._broker_seen = time.monotonic()
        elif time.monotonic() - self._broker_seen > BROKER_PATIENCE_S and self.fleet.answers():
            self._start_broker()  # a coordinator that answers has started its own, and lost it

    def _broker_pid(self) -> int | None:
        if self._broker is not None and self._broker.poll() is None:
            return self._broker.pid
        return self.fleet.broker_pid()

    def _start_broker(self) -> None:
        config = self.fleet.home / "broker" / "mosquitto.conf"
        with (self.folder / "logs" / "mosquitto.log").open("ab") as log:
            self._broker = subprocess.Popen([find_mosquitto(), "-c", config], stdout=log, stderr=log)
        self._broker_seen = time.monotonic()

    def _end_broker(self) -> None:
        if self._broker is not None:
            self._broker.terminate()
            self._broker.wait()
            self._broker = None

    def _clear(self) -> None:
        for order in self._orders.values():
            order.clear()

    # --- around a run -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        began = time.monotonic()
        for name in self.fleet.names:
            self.fleet.start_one(name)
        while not self.fleet.is_whole():
            self.fleet.revive()
            if time.monotonic() - began > self.limit_s:
                raise FleetError(f"not all agents are online within {self.limit_s:.0f} s\n{self.state()}")
            time.sleep(0.05)

    def _submit(self, began: float) -> str:
        known = set(self._run_names())
        while time.monotonic() - began < self.limit_s:
            try:
                return self.fleet.submit(self._job_file)
            except FleetError:
                # killed while it took the job: it may have been kept
                self._revive()
                time.sleep(0.1)
            status = self.fleet.ask({"op": "status"}).get("runs", [])
            new = [each["run"] for each in status if each["run"] not in known]
            if new:
                return str(new[0])
        raise FleetError(f"no run could be started within {self.limit_s:.0f} s\n{self.state()}")

    def _run_names(self) -> list[str]:
        folder = self.fleet.home / "runs"
        return [path.name for path in folder.iterdir()] if folder.exists() else []

    def _at_rest(self) -> bool:
        return all(self.fleet.exit_code(name) is None for name in self.fleet.names) and self.fleet.is_whole()

    def _left_behind(self) -> list[str]:
        """Processes of this fleet beyond those that must be there."""
        wanted = {os.getpid(), *(self.fleet.pid(name) for name in self.fleet.names), self._broker_pid()}
        left = [pid for pid in processes.marked(f"{MARK}={self.folder}") if pid not in wanted]
        return [f"{pid} {processes.command_line(pid)[:120]}" for pid in left]

    def _gather(self, run: str) -> tuple[Evidence, list[str]]:
        folder = self.fleet.run_folder(run)
        said = [json.loads(line) for label in self.labels for line in self._news(self.folder / f"{label}.said")]
        aggregations = [line for line in said if line["type"] == "aggregation"]
        messages = [line for line in said if line["type"] != "aggregation"] + self._listener.heard()
        acks = [line for line in messages if line["type"] == "ack" and line["run"] == run and line["accepted"]]
        summary = _json(folder / "summary.json")
        audit = [json.loads(line) for line in self._news(folder / "audit.jsonl")]
        evidence = Evidence(
            phase=str(summary.get("phase", "without a summary")),
            rounds=tuple(entry["round"] for entry in summary.get("rounds", [])),
            audited=tuple(line["round"] for line in audit if line["kind"] == "aggregated"),
            final=_digest(folder / "adapter"),
            acks=tuple(Accepted(line["agent"], line["round"], line["sha256"]) for line in acks),
            aggregations=tuple(
                Aggregation(line["round"], line["start"], line["out"], tuple((a, s) for a, s in line["updates"]))
                for line in aggregations
            ),
            left=tuple(self._left_behind()),
        )
        return evidence, self.counters.reused(messages)

    def _news(self, path: Path) -> list[str]:
        """The whole lines that were added to a file since the last call."""
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(whole)
        return whole.decode().splitlines()


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
