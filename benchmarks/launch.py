"""Start one of FedPipe's processes with seams of the benchmarks put into it first.

    python -m benchmarks.launch --kind agent --name bank --seams FILE -- run --config agent.toml

Owns which seams a process gets; none of them is known to the code of the product. FILE is JSON, see `Seams`.
"""

import argparse
import atexit
import cProfile
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from benchmarks.watched_events import Edge, watch_sessions
from fedpipe_profiles.device import Bits
from fedpipe_profiles.values import Value

Kind = Literal["coordinator", "agent", "trainer"]
GIB = 1 << 30


class Seams(Value):
    """What is put into the processes of a fleet.

    Attributes:
        trainer: What an agent starts as its trainer.
        bits: What every device supports.
        folder: For what the seams write.
        trace: Write when which event was handled.
        profile: Write a profile of the main thread of every process that ends in order.
        hooks: Name every operation that matters, see `hooks.py`.
        tell_all: Say what is wrong with every refused packet, however many there are.
    """

    trainer: Literal["echo", "real"] = "echo"
    bits: tuple[Bits, ...] = (32,)
    folder: str
    trace: bool = False
    profile: bool = False
    hooks: bool = False
    tell_all: bool = False
    threads: int = Field(default=1, ge=1)


def command(kind: Kind, name: str, seams: Path, *arguments: str) -> list[str]:
    """What `python -m` is given to start such a process."""
    return ["benchmarks.launch", "--kind", kind, "--name", name, "--seams", str(seams), "--", *arguments]


def replace(module: ModuleType, name: str, value: object) -> None:
    """Put something in the place of a name that a module has.

    Raises:
        AttributeError: if it has no such name: a seam that fits nothing must not pass for one that does.
    """
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name!r} any more: look where the benchmarks' seam must go")
    setattr(module, name, value)


class Trace:
    """Lines of "monotonic seconds, edge, event", for as long as the process lives.

    Those of chunks, by far the most, wait for the next other line: a write of its own for each would be a good part of
    what handling it takes.
    """

    HELD = 64

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._held: list[bytes] = []
        self._lock = threading.Lock()

    def event(self, name: str, edge: Edge) -> None:
        """Something began or ended."""
        line = f"{time.monotonic():.6f} {edge} {name}\n".encode()
        with self._lock:
            self._held.append(line)
            if not name.endswith("-chunk") or len(self._held) >= self.HELD:
                os.write(self._file, b"".join(self._held))
                self._held.clear()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, told of."""

        def told(*args: Any, **more: Any) -> Any:
            self.event(name, "before")
            try:
                return function(*args, **more)
            finally:
                self.event(name, "after")

        return told


def fixed_profile(bits: tuple[Bits, ...], threads: int) -> Callable[..., Any]:
    """In place of measuring: seconds at every start, and figures that differ every time."""
    from fedpipe_agent.rates import bandwidth_rate, matmul_rate  # noqa: PLC0415 - only agents have it
    from fedpipe_profiles.device import DeviceProfile, Host  # noqa: PLC0415 - same

    def probe(agent: str, *, limits: Any, device: str = "auto", datasets: Any = (), link: Any = None) -> Any:
        del device
        times = (0.01, 0.01, 0.01)
        profile = DeviceProfile(
            agent=agent,
            host=Host(cpu="fixed", threads=threads, total_bytes=64 * GIB, free_bytes=48 * GIB),
            supported_bits=bits,
            matmul=(matmul_rate("float32", (512, 1024, 1024), times),),
            bandwidth=bandwidth_rate(64 << 20, times),
            link=link,
            limits=limits,
            datasets=tuple(sorted(datasets)),
        )
        return profile, ()

    return probe


def _patch_agent(name: str, seams: Seams, seams_path: Path) -> None:
    from fedpipe_agent import trainer_process  # noqa: PLC0415 - the coordinator must not carry the agent
    from fedpipe_agent.cli import run  # noqa: PLC0415 - same

    trainer = command("trainer", name, seams_path)
    if seams.trainer == "echo" and not seams.hooks:
        trainer = ["benchmarks.echo_trainer"]
    replace(trainer_process, "TRAINER_COMMAND", (sys.executable, "-m", *trainer))
    replace(run, "probe_device", fixed_profile(seams.bits, seams.threads))


def _patch_coordinator_trace(trace: Trace) -> None:
    from fedpipe_coordinator import work  # noqa: PLC0415 - only the coordinator has it
    from fedpipe_coordinator.aggregation import adapter_making  # noqa: PLC0415 - only the coordinator has it

    traced = {work: ("make_plans", "aggregate"), adapter_making: ("aggregate_files", "take_in")}
    for module, names in traced.items():
        for name in names:
            replace(module, name, trace.around(f"work-{name}", getattr(module, name)))


def _tell_all(kind: Kind) -> None:
    if kind == "coordinator":
        from fedpipe_coordinator.audit import refusals  # noqa: PLC0415 - only the coordinator has it

        replace(refusals, "LINES_A_MINUTE", sys.maxsize)
        replace(refusals, "LINES_IN_ALL", sys.maxsize)
    elif kind == "agent":
        from fedpipe_agent import refusals as of_agent  # noqa: PLC0415 - only agents have it

        replace(of_agent, "MOST", sys.maxsize)


def _install_hooks(kind: Kind, name: str, folder: Path) -> None:
    from benchmarks.hooks import Hooks, OrderFile  # noqa: PLC0415 - fleets without hooks do not load any of it
    from benchmarks.patches import install  # noqa: PLC0415 - same
    from benchmarks.witness import Witness  # noqa: PLC0415 - same

    label = f"{kind}-{name}"
    witness = Witness(folder / f"{label}.said")
    if kind == "coordinator":
        from fedpipe_coordinator.aggregation import adapter_making  # noqa: PLC0415 - only the coordinator has it

        whole = vars(adapter_making)["aggregate_files"]
        replace(adapter_making, "aggregate_files", witness.of_aggregation(whole))
    install(Hooks(kind, OrderFile(folder / f"{label}.order"), folder / f"{label}.hits"), witness.published)


def _profile_to(path: Path) -> None:
    profiler = cProfile.Profile()

    def write() -> None:
        profiler.disable()
        profiler.dump_stats(path)

    atexit.register(write)
    profiler.enable()


def _main_of(kind: Kind, seams: Seams) -> Callable[[], Any]:
    if kind == "coordinator":
        from fedpipe_coordinator.cli import main as coordinator  # noqa: PLC0415 - each process loads its own only

        return coordinator
    if kind == "agent":
        from fedpipe_agent.cli import main as agent  # noqa: PLC0415 - same

        return agent
    if seams.trainer == "real":
        from fedpipe_agent.train.__main__ import main as real  # noqa: PLC0415 - same

        return real
    from benchmarks.echo_trainer import main as echo  # noqa: PLC0415 - same

    return echo


def main() -> None:
    """Put the seams in and run the process's own main."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kind", required=True, choices=("coordinator", "agent", "trainer"))
    parser.add_argument("--name", required=True, help="of this process among those of the fleet")
    parser.add_argument("--seams", type=Path, required=True)
    parser.add_argument("arguments", nargs="*", help="of the program itself")
    given = parser.parse_args()
    seams = Seams.model_validate_json(given.seams.read_bytes())
    folder, label = Path(seams.folder), f"{given.kind}-{given.name}"
    if given.kind == "agent":
        _patch_agent(given.name, seams, given.seams)
    if seams.trace and given.kind != "trainer":
        trace = Trace(folder / f"{label}.trace")
        watch_sessions(trace.event)
        if given.kind == "coordinator":
            _patch_coordinator_trace(trace)
    if seams.hooks:
        _install_hooks(given.kind, given.name, folder)
    if seams.tell_all:
        _tell_all(given.kind)
    if seams.profile:
        _profile_to(folder / f"{label}.profile")
    program = _main_of(given.kind, seams)
    sys.argv = [f"fedpipe-{given.kind}", *given.arguments]
    sys.exit(program())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
