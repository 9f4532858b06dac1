"""A run's folder: `summary.json`, `rounds.jsonl`, `audit.jsonl`, and where the exports go.

Owns the schema of these files. What they say is taken from the run's state; nothing is decided here.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fedpipe_coordinator.home import Home
from fedpipe_coordinator.metrics import metrics_data
from fedpipe_coordinator.run_state import Member, RoundResult, RunState
from fedpipe_profiles.model import ModelShape
from fedpipe_wire.messages import Metrics

SCHEMA_VERSION = 1
AUDIT = "audit.jsonl"
ROUNDS = "rounds.jsonl"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def agent_record(member: Member, round_: int, shape: ModelShape, down_bytes: int) -> dict[str, Any]:
    """One agent's part of a round: what was planned, what was measured, how it ended."""
    plan = member.plan if member.plan is not None and member.plan.round == round_ else None
    trained = member.trained
    record: dict[str, Any] = {"agent": member.name, "status": member.standing, "note": member.note}
    if plan is None:
        return record
    weights = {weight.name: weight for weight in shape.weights}
    trainable = sum(rank * (weights[name].d_out + weights[name].d_in) for name, rank in plan.ranks.items())
    return record | {
        "bits": plan.bits,
        "batch_size": plan.batch_size,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "ranks": plan.ranks,
        "trainable_parameters": trainable + shape.head_parameters,
        "predicted_peak_bytes": plan.predicted.peak_bytes,
        "measured_peak_bytes": trained.measurement.peak_bytes if trained else None,
        "predicted_round_s": round(plan.predicted.round_s, 3),
        "measured_round_s": None if member.round_s is None else round(member.round_s, 3),
        "examples": trained.examples if trained else 0,
        "planned_examples": plan.examples,
        "train_loss": trained.train_loss if trained else None,
        "download_s": trained.download_s if trained else None,
        "compute_s": trained.compute_s if trained else None,
        "up_bytes": trained.update.size if trained else 0,
        "down_bytes": down_bytes,
        "bound": plan.bound,
        "reason": plan.reason,
        "actions": list(trained.actions) if trained else [],
    }


def round_record(result: RoundResult, metric: Metrics | None, shape: ModelShape, down_bytes: int) -> dict[str, Any]:
    """A line of `rounds.jsonl`. `metric` is of the adapter that this round made."""
    return {
        "round": result.round,
        "wall_s": round(result.wall_s, 3),
        "deadline_s": round(result.deadline_s, 3),
        "metric": metrics_data(metric) or None,
        "truncation_tail": result.truncation_tail,
        "agents": [agent_record(member, result.round, shape, down_bytes) for member in result.members],
        "late": [share.model_dump(mode="json", exclude={"sha256"}) for share in result.late],
    }


class RecordError(Exception):
    """A run's folder cannot be used; the message says why and what to do."""


class RecordsFullError(RecordError):
    """The disk of a run's folder is full: with room it can be used again."""


class RunFolder:
    """Writes a run's files. Every line is on disk when its method returns.

    Args:
        path: the folder.
        make: make it where it is not there. One that its owner named is made when the run begins, and never again: it
            may be on a disk that is not mounted.

    Raises:
        RecordError: from every method that writes, if the disk does not take it.
    """

    def __init__(self, path: Path, *, make: bool = True) -> None:
        self.path = path
        self._make = make

    def claim(self) -> None:
        """Make the folder for a new run.

        Raises:
            RecordError: if it cannot be written, or holds a run already.
        """
        mine = ("summary.json", ROUNDS, AUDIT, "report.html", "adapter", "merged")
        taken = [name for name in mine if (self.path / name).exists()]
        if taken:
            raise RecordError(f"{self.path} holds a run already ({taken[0]}): name another folder")
        with _naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".claim"
            probe.touch()
            probe.unlink()

    def exports(self) -> dict[str, str]:
        """What was exported into this folder."""
        return {path.name: str(path) for path in (self.adapter, self.merged) if path.is_dir()}

    def phase(self) -> str | None:
        """The phase that the summary tells; None where there is no folder any more."""
        if not self.path.is_dir():
            return None
        try:
            return str(json.loads((self.path / "summary.json").read_text()).get("phase"))
        except (OSError, ValueError):
            return ""

    @property
    def adapter(self) -> Path:
        """Where the PEFT adapter goes."""
        return self.path / "adapter"

    @property
    def merged(self) -> Path:
        """Where the merged model goes."""
        return self.path / "merged"

    def rounds(self) -> list[dict[str, Any]]:
        """The rounds recorded so far."""
        return read_lines(self.path / ROUNDS)

    def audit(self) -> list[dict[str, Any]]:
        """The decisions recorded so far."""
        return read_lines(self.path / AUDIT)

    def last_number(self, name: str, key: str) -> int:
        """The value of a key in the last whole line of a file; 0 where there is none, or none that can be read."""
        try:
            return int(json.loads((self.path / name).read_bytes().split(b"\n")[-2]).get(key, 0))
        except (OSError, ValueError, IndexError, AttributeError):
            return 0

    def summary(self, state: RunState, exports: dict[str, str]) -> dict[str, Any]:
        """What `summary.json` says."""
        return {
            "schema": SCHEMA_VERSION,
            "run": state.run,
            "job": state.job.job.name,
            "task": state.job.job.task,
            "model": state.job.job.model,
            "seed": state.job.job.seed,
            "phase": state.phase,
            "note": state.note,
            "failure": state.failure,
            "labels": list(state.labels),
            "initial_metric": metrics_data(state.initial_metric) or None,
            "final_metric": metrics_data(state.final_metric) or None,
            "exports": {"adapter": exports.get("adapter"), "merged": exports.get("merged")},
            "settings": state.job.model_dump(mode="json"),
            "rounds": self.rounds(),
        }

    def write_summary(self, state: RunState, exports: dict[str, str]) -> dict[str, Any]:
        """Write `summary.json` anew, whole, and return what it holds."""
        summary = self.summary(state, exports)
        with self.writing():
            write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary

    def append(self, name: str, lines: Sequence[str]) -> None:
        """Append lines to a file, all of them or, after a kill, the first ones."""
        with self.writing(), (self.path / name).open("a+b") as file:
            end = _whole_bytes(file)
            file.truncate(end)
            try:
                file.write(b"".join(line.encode() + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # what was written of them is written again
                    os.truncate(self.path / name, end)
                raise

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Say which folder it is that cannot be written, and make it where that may be done."""
        with _naming(self.path):
            if self._make:
                self.path.mkdir(parents=True, exist_ok=True)
            yield


def folder_of(state: RunState, home: Home, *, new: bool = False) -> RunFolder:
    """The folder of a run: the one that its owner named, or one of the federation's. `new`: it may be made."""
    return RunFolder(Path(state.folder), make=new) if state.folder else RunFolder(home.run(state.run))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The values in a file of JSON lines; a last line that a kill cut short was never said, and does not count."""
    if not path.exists():
        return []
    # Only b"\n" ends a line: texts from agents may hold other characters that Python takes for line ends.
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def _whole_bytes(file: BinaryIO) -> int:
    """How many bytes of a file of lines are whole lines."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 4096)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = RecordsFullError if error.errno in _FULL else RecordError
        raise kind(
            f"the run's folder {path} cannot be written: {error.strerror or error}. Free space, make it writable "
            "for the coordinator's user, or name another folder"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text so that a reader sees the old or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
