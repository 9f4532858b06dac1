"""job.toml, agent.toml and federation.toml that nobody should take, given to the real command lines.

Owns the files of these three kinds. A refusal ends with the documented exit code and a message that names the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.badinput_cases import Case
from benchmarks.badinput_commands import Commands, Make, clear, device, loop, pipe
from benchmarks.badinput_commands import text as _text
from fedpipe_agent.exit_codes import ExitCode as AgentExit
from fedpipe_coordinator.exit_codes import ExitCode

JOB = """\
[job]
name = "j"
model = "m"
task = "causal-lm"
[data]
dataset = "d"
[rounds]
number = 2
"""
AGENT = """\
name = "a"
federation = "f"
[broker]
host = "127.0.0.1"
insecure = true
[limits]
threads = 1
"""
FEDERATION = """\
federation = "f"
[broker]
host = "127.0.0.1"
port = 1883
insecure = true
"""
ESCAPE = "\\u001b]0;owned\\u0007\\u001b[2J"
"""As TOML writes what sets a terminal's title and clears it."""


def _changed(base: str, old: str, new: str) -> Make:
    assert old in base, old
    return _text(base.replace(old, new))


NOT_TOML = "not TOML"
LARGE = "larger than \\d+ bytes"
ANY: Mapping[str, tuple[Make, str]] = {
    "not there": (lambda _: None, "no such file"),
    "empty": (_text(""), "missing; it has no default"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "a FIFO that nobody writes to": (pipe, "is no file"),
    "/dev/zero": (device, "is no file"),
    "a loop of links": (loop, "cannot be read"),
    "zeros": (_text(bytes(1000)), NOT_TOML),
    "not UTF-8": (_text(b'name = "\xff\xfe"\n'), "not UTF-8: byte 0xff on line 1"),
    "UTF-16": (_text('name = "a"\n'.encode("utf-16")), "not UTF-8"),
    "10 MB of comments": (_text(b"# " + b"x" * 10_000_000), LARGE),
    "a sparse file of 4 GiB": (lambda path: _sparse(path, 4 << 30), LARGE),
    "lists 100,000 deep": (_text("x = " + "[" * 100_000), "nested too deeply"),
    "tables 20,000 deep": (_text("[" + "a." * 20_000 + "a]\n"), "nested too deeply"),
    "a number of 10,000 digits": (_text("x = " + "9" * 10_000), NOT_TOML),
    "JSON": (_text('{"job": {"name": "j"}}'), NOT_TOML),
    "ELF": (_text(b"\x7fELF\2\1\1" + bytes(100)), NOT_TOML),
    "a terminal escape in a key": (_text(f'"{ESCAPE}" = 1\n'), "unknown key"),
    "a key of 100,000 characters": (_text("k" * 100_000 + " = 1\n"), "unknown key"),
    "19,000 unknown keys": (_text("".join(f"k{number} = 1\n" for number in range(19_000))), "unknown key"),
    "25,000 unknown keys": (_text("".join(f"{number:x}=1\n" for number in range(25_000))), "more than 20000 values"),
    "a key of 100,000 parts": (_text("a." * 100_000 + "a = 1\n"), "nested too deeply"),
}


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _job(old: str, new: str) -> Make:
    return _changed(JOB, old, new)


def _agent(old: str, new: str) -> Make:
    return _changed(AGENT, old, new)


def _federation(old: str, new: str) -> Make:
    return _changed(FEDERATION, old, new)


JOBS: Mapping[str, tuple[Make, str]] = {
    "a name with a terminal escape": (_job('"j"', f'"{ESCAPE}"'), "job name .* is not usable"),
    "a path as a name": (_job('"j"', '"../../etc"'), "job name .* is not usable"),
    "a name of 100,000 characters": (_job('"j"', f'"{"j" * 100_000}"'), "job name .* is not usable"),
    "a model of 100,000 characters": (_job('"m"', f'"{"m" * 100_000}"'), "job.model"),
    "no model": (_job('"m"', '""'), "job.model"),
    "a task that there is not": (_job("causal-lm", "regression"), "job.task"),
    "text for a number": (_job("number = 2", 'number = "2"'), "rounds.number"),
    "truth for a number": (_job("number = 2", "number = true"), "rounds.number"),
    "no rounds": (_job("number = 2", "number = 0"), "rounds.number"),
    "minus one round": (_job("number = 2", "number = -1"), "rounds.number"),
    "2^64 rounds": (_job("number = 2", f"number = {1 << 64}"), "rounds.number"),
    "10^400 rounds": (_job("number = 2", "number = 1" + "0" * 400), "rounds.number"),
    "infinite rounds": (_job("number = 2", "number = inf"), "rounds.number"),
    "a deadline of NaN": (_job("number = 2", "number = 2\ndeadline_s = nan"), "rounds.deadline_s"),
    "a deadline of 1e308": (_job("number = 2", "number = 2\ndeadline_s = 1e308"), "rounds.deadline_s"),
    "a deadline of 1e400": (_job("number = 2", "number = 2\ndeadline_s = 1e400"), "rounds.deadline_s"),
    "half an agent": (_job("number = 2", "number = 2\nmin_agents = 0.5"), "rounds.min_agents"),
    "a fraction of 2": (_job("number = 2", "number = 2\nfraction = 2.0"), "rounds.fraction"),
    "a learning rate of 1e300": (_text(f"{JOB}[train]\nlearning_rate = 1e300\n"), "train.learning_rate"),
    "a negative learning rate": (_text(f"{JOB}[train]\nlearning_rate = -1.0\n"), "train.learning_rate"),
    "a sequence of 2^40 tokens": (_text(f"{JOB}[train]\nsequence_length = {1 << 40}\n"), "train.sequence_length"),
    "batches that fall": (_text(f"{JOB}[train]\nbatch_sizes = [4, 2]\n"), "should rise"),
    "a rank of 2^40": (_text(f"{JOB}[adapter]\nglobal_rank = {1 << 40}\n"), "adapter.global_rank"),
    "ranks beyond the global one": (
        _text(f"{JOB}[adapter]\nglobal_rank = 4\nrank_ladder = [8]\n"),
        "not go beyond adapter.global_rank",
    ),
    "a date for a table": (_text(JOB.replace("[data]\ndataset", "data = 2030-01-01\n[x]\ny")), "data"),
    "labels for a model of language": (_job('dataset = "d"', 'dataset = "d"\nlabels = ["a", "b"]'), "labels are for"),
    "a label twice": (
        _text(JOB.replace("causal-lm", "sequence-classification").replace('"d"', '"d"\nlabels = ["a", "a"]')),
        "twice",
    ),
}
AGENTS: Mapping[str, tuple[Make, str]] = {
    "a name with a terminal escape": (_agent('"a"', f'"{ESCAPE}"'), "agent name .* is not usable"),
    "a name that is a topic": (_agent('"a"', '"a/up/#"'), "agent name .* is not usable"),
    "the coordinator's name": (_agent('"a"', '"_coordinator"'), "agent name .* is not usable"),
    "a broker elsewhere, insecure": (_agent("127.0.0.1", "192.0.2.1"), "broker.insecure"),
    "a host with a terminal escape": (
        _text(AGENT.replace("127.0.0.1", ESCAPE).replace("insecure = true", "")),
        "broker.host",
    ),
    "a host of 100,000 characters": (_agent("127.0.0.1", "h" * 100_000), "broker.host"),
    "a port of 65536": (_agent("insecure", "port = 65536\ninsecure"), "broker.port"),
    "no threads": (_agent("threads = 1", "threads = 0"), "limits.threads"),
    "2^40 threads": (_agent("threads = 1", f"threads = {1 << 40}"), "limits.threads"),
    "10^400 MiB": (_agent("threads = 1", "memory_mib = 1" + "0" * 400), "limits.memory_mib"),
    "an uplink of NaN": (_agent("threads = 1", "uplink_mbit = nan"), "limits.uplink_mbit"),
    "an uplink of 1e-300": (_agent("threads = 1", "uplink_mbit = 1e-300"), "limits.uplink_mbit"),
    "hours without end": (_agent("threads = 1", 'hours = "20:00-20:00"'), "limits.hours"),
    "the 25th hour": (_agent("threads = 1", 'hours = "25:00-26:00"'), "limits.hours"),
    "a device that there is not": (_text(f'{AGENT}[training]\ndevice = "tpu"\n'), "training.device"),
    "a trainer kept for 1e308 s": (_text(f"{AGENT}[training]\nidle_s = 1e308\n"), "training.idle_s"),
    "chunks of 2^40 KiB": (_text(f"{AGENT}[transfer]\nchunk_kib = {1 << 40}\n"), "transfer.chunk_kib"),
    "a window of 2^60 chunks": (_text(f"{AGENT}[transfer]\nwindow = {1 << 60}\n"), "transfer.window"),
    "silence of 1e308 s": (_text(f"{AGENT}[transfer]\nsilence_s = 1e308\n"), "transfer.silence_s"),
    "a home folder": (_text('state = "~/x"\n' + AGENT), "~ is not expanded"),
    "a state folder with NUL": (_text('state = "a\\u0000b"\n' + AGENT), "state"),
    "a dataset that is a number": (_text(f"{AGENT}[datasets]\nclaims = 1\n"), "datasets.claims"),
    "a dataset without a path": (_text(f"{AGENT}[datasets.claims]\n"), "datasets.claims.path"),
    "a dataset in pickle": (
        _text(f'{AGENT}[datasets.claims]\npath = "x"\nformat = "pickle"\n'),
        "datasets.claims.format",
    ),
    "all data held out": (
        _text(f'{AGENT}[datasets.claims]\npath = "x"\nheld_out_fraction = 1.0\n'),
        "datasets.claims.held_out_fraction",
    ),
}
FEDERATIONS: Mapping[str, tuple[Make, str]] = {
    "a name with a terminal escape": (_federation('"f"', f'"{ESCAPE}"'), "federation name .* is not usable"),
    "a name with a wildcard": (_federation('"f"', '"+"'), "federation name .* is not usable"),
    "a port of -1": (_federation("1883", "-1"), "broker.port"),
    "insecure to the world": (_federation("127.0.0.1", "0.0.0.0"), "broker.insecure"),
    "managed by text": (_federation("port", 'managed = "no"\nport'), "broker.managed"),
    "a line of the broker's own settings in the host": (
        _text(FEDERATION.replace("127.0.0.1", "127.0.0.1\\nallow_anonymous true").replace("insecure = true", "")),
        "broker.host",
    ),
    "a window of 2^60 chunks": (_text(f"{FEDERATION}[transfer]\nwindow = {1 << 60}\n"), "transfer.window"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of file is called, which command reads it, and how that ends: refusing it, or having taken it."""

    name: str
    file: str
    arguments: tuple[str, ...]
    refused: int
    taken: tuple[int | None, ...]
    files: Mapping[str, tuple[Make, str]]


READ_AS_ANY = ("a FIFO that nobody writes to", "zeros", "10 MB of comments", "lists 100,000 deep")
KINDS = (
    Kind(
        "job file",
        "job.toml",
        ("fedpipe_coordinator", "run", "job.toml", "--home", "."),
        ExitCode.BAD_SETTINGS,
        (ExitCode.COORDINATOR_NOT_RUNNING, 0, None),
        {**ANY, **JOBS},
    ),
    Kind(
        "agent file",
        "agent.toml",
        ("fedpipe_agent", "run", "--config", "agent.toml"),
        AgentExit.BAD_AGENT_FILE,
        (AgentExit.OK, AgentExit.DATASET_UNUSABLE, AgentExit.STATE_FOLDER_UNUSABLE, None),
        {name: ANY[name] for name in READ_AS_ANY} | dict(AGENTS),
    ),
    Kind(
        "federation file",
        "federation.toml",
        ("fedpipe_coordinator", "up", "."),
        ExitCode.BAD_SETTINGS,
        (0, ExitCode.BROKER_UNREACHABLE, ExitCode.BROKER_CANNOT_START, None),
        {name: ANY[name] for name in READ_AS_ANY[1:]} | dict(FEDERATIONS),
    ),
)


def _try(commands: Commands, kind: Kind, make: Make) -> str:
    path = commands.folder / kind.file
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    make(path)
    try:
        return commands.refusal(kind.arguments, (kind.refused,), kind.taken)
    finally:
        clear(path)
        if before is not None:
            path.write_bytes(before)


def cases(commands: Commands) -> list[Case]:
    """All of these kinds; puts a good federation.toml into the folder where the commands work.

    So a good job would be refused for no other reason than that no coordinator runs.
    """
    (commands.folder / "federation.toml").write_text(FEDERATION)
    return [
        Case(kind.name, name, partial(_try, commands, kind, make), says)
        for kind in KINDS
        for name, (make, says) in kind.files.items()
    ]
