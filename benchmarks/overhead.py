"""What a round costs beyond training: real processes, a loopback Mosquitto, an echo in place of the trainer.

    python -m benchmarks.overhead [--rounds 10] [--mib 16] [--agents 2] [--seed N] [--json FILE] [--profile FOLDER]

Adapter and updates have `--mib` MiB each. `seconds_per_round` is the mean time from one aggregation's end to the next,
all of it: planning, broadcast, the echo's own reading and writing, uploads, checks and aggregation; the parts are
printed beside it. `bytes_ratio` is what crossed the loopback interface, over what must: the adapter in once and out to
every agent, for every round and for the evaluation at the end; every update in and out. As root the fleet runs in a
network namespace of its own, so that nothing else is counted. `pss_mib` is the largest sum of the proportional set
sizes of coordinator and agents; trainers and broker are told beside it.
"""

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.echo_trainer import model_name
from benchmarks.fleet import OVER, Fleet, FleetError, FleetSettings, JobSize
from benchmarks.launch import Seams
from benchmarks.round_parts import PARTS, handling_seconds, read_trace, round_parts

MIB = 1 << 20
RANK, WIDTH = 16, 2048
_BYTES_PER_WEIGHT = 4 * RANK * 2 * WIDTH
_CLONE_NEWNET = 0x40000000
SAMPLE_S = 0.25
LIMIT_S = 600.0


@dataclass
class Samples:
    """The largest sums seen, in bytes, sampled by a thread until `stop`."""

    fleet: Fleet
    peak: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("coordinator", "agents", "trainers", "broker", "sum"), 0)
    )
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to sample."""
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            fleet = self.fleet
            broker = fleet.broker_pid()
            now = {
                "coordinator": processes.pss_bytes([fleet.pid("coordinator")]),
                "agents": processes.pss_bytes(fleet.pid(name) for name in fleet.agents),
                "trainers": processes.pss_bytes(fleet.trainer_pids().values()),
                "broker": processes.pss_bytes([] if broker is None else [broker]),
            }
            now["sum"] = now["coordinator"] + now["agents"]
            self.peak = {name: max(self.peak[name], size) for name, size in now.items()}


def own_network() -> bool:
    """Move this process into a network namespace with nothing but loopback; False where that is not allowed."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return True


def bytes_that_must_cross(adapter: int, update: int, agents: int, rounds: int) -> int:
    """In and out of the broker: the adapter of every round and of the last evaluation, and every update."""
    return (rounds + 1) * adapter * (1 + agents) + rounds * agents * 2 * update


def measure(folder: Path, *, rounds: int, mib: float, agents: int, seed: int, profile: bool) -> dict[str, Any]:
    """All figures, of a federation without keys and of one with TLS, certificates and seals.

    Raises:
        FleetError: if a run does not end well.
    """
    found: dict[bool, dict[str, Any]] = {}
    for secure in (False, True):
        inner = folder / ("tls" if secure else "plain")
        inner.mkdir()
        found[secure] = _measure(
            inner, FleetSettings(agents, secure=secure), rounds=rounds, mib=mib, seed=seed, profile=profile
        )
    plain, tls = found[False], found[True]
    return plain | {
        "seconds_per_round_tls": tls["seconds_per_round"],
        "pss_mib": max(plain["pss_mib"], tls["pss_mib"]),
        "tls": {key: tls[key] for key in ("median_round_s", "bytes_ratio", "pss_mib")},
        "tls_parts_s": tls["parts_s"],
        "tls_peak_pss_mib": tls["peak_pss_mib"],
        "tls_cpu_s_per_round": tls["cpu_s_per_round"],
    }


def _measure(
    folder: Path, settings: FleetSettings, *, rounds: int, mib: float, seed: int, profile: bool
) -> dict[str, Any]:
    """The figures of one federation.

    Raises:
        FleetError: if the run does not end well.
    """
    weights = max(1, round(mib * MIB / _BYTES_PER_WEIGHT))
    size = JobSize(model_name(weights, WIDTH, WIDTH), rounds, RANK, min_agents=settings.agents, seed=seed)
    alone = own_network()
    with Fleet(folder, settings, Seams(folder=str(folder), trace=True, profile=profile)) as fleet:
        fleet.start()
        samples = Samples(fleet)
        before, began = processes.interface_bytes(), time.monotonic()
        cpu_before = _cpu_s(fleet)
        samples.start()
        run = fleet.submit(fleet.write_job(size))
        fleet.wait("the run", lambda: fleet.summary_phase(run) in OVER, LIMIT_S)
        wall_s = time.monotonic() - began
        cpu_s = {name: seconds - cpu_before.get(name, 0.0) for name, seconds in _cpu_s(fleet).items()}
        samples.stop()
        crossed = processes.interface_bytes() - before
        return _figures(fleet, run, size, wall_s, crossed, samples.peak) | {
            "namespace": alone,
            "cpu_s_per_round": {name: round(seconds / rounds, 4) for name, seconds in cpu_s.items()},
        }


def _figures(
    fleet: Fleet, run: str, size: JobSize, wall_s: float, crossed: int, peak: dict[str, int]
) -> dict[str, Any]:
    summary = json.loads((fleet.run_folder(run) / "summary.json").read_text())
    if summary["phase"] != "done":
        raise FleetError(f"the run is {summary['phase']}: {summary['note']}\n{fleet.last_words()}")
    entries = summary["rounds"]
    adapter, update = entries[-1]["agents"][0]["down_bytes"], entries[-1]["agents"][0]["up_bytes"]
    coordinator = read_trace((fleet.folder / "coordinator-coordinator.trace").read_text())
    agents = [read_trace((fleet.folder / f"agent-{name}.trace").read_text()) for name in fleet.agents]
    parts = round_parts(coordinator, agents, entries)
    must = bytes_that_must_cross(adapter, update, fleet.settings.agents, size.rounds)
    return {
        "seconds_per_round": statistics.fmean(each["round"] for each in parts),
        "bytes_ratio": crossed / must,
        "pss_mib": peak["sum"] / MIB,
        "median_round_s": statistics.median(each["round"] for each in parts),
        "parts_s": {name: statistics.fmean(each[name] for each in parts) for name in PARTS},
        "peak_pss_mib": {name: round(size_ / MIB, 1) for name, size_ in peak.items()},
        "coordinator_handling_s": _per_round(handling_seconds(coordinator), size.rounds),
        "agent_handling_s": _per_round(handling_seconds(agents[0]), size.rounds),
        "adapter_bytes": adapter,
        "update_bytes": update,
        "crossed_bytes": crossed,
        "must_cross_bytes": must,
        "rounds": size.rounds,
        "agents": fleet.settings.agents,
        "run_s": wall_s,
        "processors": len(os.sched_getaffinity(0)),
    }


def _per_round(handled: dict[str, tuple[int, float]], rounds: int) -> dict[str, list[float]]:
    top = list(handled.items())[:8]
    return {name: [round(count / rounds, 1), round(seconds / rounds, 4)] for name, (count, seconds) in top}


def _cpu_s(fleet: Fleet) -> dict[str, float]:
    broker = fleet.broker_pid()
    pids = {name: fleet.pid(name) for name in fleet.names} | ({} if broker is None else {"broker": broker})
    return {name: processes.cpu_s(pid) for name, pid in pids.items()}


_PARTED = (
    "parts_s",
    "peak_pss_mib",
    "cpu_s_per_round",
    "tls",
    "tls_parts_s",
    "tls_peak_pss_mib",
    "tls_cpu_s_per_round",
)


def print_table(figures: dict[str, Any]) -> None:
    """For people."""
    for key, value in figures.items():
        if not isinstance(value, dict):
            print(f"{key:24} {value:.4g}" if isinstance(value, float) else f"{key:24} {value}")
    for key in _PARTED:
        print(f"\n{key}")
        for name, value in figures[key].items():
            print(f"  {name:22} {value:.4f}")
    for key in ("coordinator_handling_s", "agent_handling_s"):
        print(f"\n{key}: events and seconds per round")
        for name, (count, seconds) in figures[key].items():
            print(f"  {name:44} {count:8.1f} {seconds:8.4f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="what a round costs beyond training")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--mib", type=float, default=16.0, help="size of the adapter and of every update")
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--profile", type=Path, help="keep profiles (cProfile) of all main threads in this new folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedpipe-overhead-") as name:
        folder = Path(name)
        figures = measure(
            folder,
            rounds=given.rounds,
            mib=given.mib,
            agents=given.agents,
            seed=given.seed,
            profile=given.profile is not None,
        )
        if given.profile is not None:
            given.profile.mkdir(parents=True)
            for path in folder.glob("*/*.profile"):
                shutil.copy(path, given.profile / f"{path.parent.name}-{path.name}")
    print_table(figures)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
