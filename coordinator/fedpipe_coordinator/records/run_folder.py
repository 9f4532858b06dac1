"""A run's folder: `summary.json`, `rounds.jsonl`, `audit.jsonl`, and where the exports go.

Owns the schema of these files. What they say is taken from the run's state; nothing is decided here.
"""

import contextlib
import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from fedpipe_coordinator.home import Home
from fedpipe_coordinator.metrics import metrics_data
from fedpipe_coordinator.records.line_files import (
    Keys,
    append_lines,
    last_line,
    last_number,
    read_lines,
    replace_bytes,
    set_aside,
)
from fedpipe_coordinator.records.prediction_errors import mean_error, memory_error, time_error
from fedpipe_coordinator.runs.run_state import Member, RoundResult, RunState
from fedpipe_profiles.model import ModelShape
from fedpipe_wire.message_values import Metrics

SCHEMA_VERSION = 1
AUDIT = "audit.jsonl"
ROUNDS = "rounds.jsonl"
KEYS: Mapping[str, Keys] = {
    AUDIT: {"number": int, "time": str, "kind": str, "round": int, "agent": object, "text": str},
    ROUNDS: {"round": int, "agents": list},
}
"""What a line of each file has at least; one that has not was not written by this module."""
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
        "memory_error": memory_error(plan, trained),
        "time_error": time_error(plan, trained, member.round_s),
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
    agents = [agent_record(member, result.round, shape, down_bytes) for member in result.members]
    return {
        "round": result.round,
        "wall_s": round(result.wall_s, 3),
        "deadline_s": round(result.deadline_s, 3),
        "metric": metrics_data(metric) or None,
        "truncation_tail": result.truncation_tail,
        "memory_error": mean_error(agents, "memory_error"),
        "time_error": mean_error(agents, "time_error"),
        "agents": agents,
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
        ours: one of the federation's own: where it is gone, it may be made again to tell in it how its run ended. One
            that its owner named may be on a disk that is not mounted.

    Raises:
        RecordError: from every method that writes, if the disk does not take it.
    """

    def __init__(self, path: Path, *, ours: bool = True) -> None:
        self.path = path
        self._ours = ours

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
            summary = json.loads((self.path / "summary.json").read_text())
        except (OSError, ValueError, RecursionError):
            return ""
        return str(summary.get("phase")) if isinstance(summary, dict) else ""

    @property
    def adapter(self) -> Path:
        """Where the PEFT adapter goes."""
        return self.path / "adapter"

    @property
    def merged(self) -> Path:
        """Where the merged model goes."""
        return self.path / "merged"

    def rounds(self) -> list[dict[str, Any]]:
        """The rounds recorded so far, as far as they can be read; of one that was done again, the last record."""
        last = {line["round"]: line for line in self.lines(ROUNDS)}
        return [last[round_] for round_ in sorted(last)]

    def audit(self) -> list[dict[str, Any]]:
        """The decisions recorded so far, as far as they can be read."""
        return self.lines(AUDIT)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file that can be read.

        Raises:
            OSError: if the file itself cannot be.
        """
        return read_lines(self.path / name, KEYS[name])

    def last_number(self, name: str, key: str) -> int:
        """The value of a key in the last line of a file that can be read; 0 where there is none."""
        return last_number(self.path / name, key, KEYS[name])

    def last_line(self, name: str) -> dict[str, Any] | None:
        """The last line of a file that can be read, if there is one; none where the file itself cannot be."""
        try:
            return last_line(self.path / name, KEYS[name])
        except OSError:
            return None

    def set_aside(self, name: str) -> tuple[str, dict[str, Any]] | None:
        """Take out of a file the lines that cannot be read, with a copy beside; what happened, in words and as data."""
        with self.writing():
            done = set_aside(self.path / name, KEYS[name])
        if done is None:
            return None
        copy, bad = done
        text = (
            f"{bad} lines of {self.path / name} cannot be read: the run goes on with the others. The file as it was "
            f"is kept as {copy.name}; see what changed it, another program or a failing disk"
        )
        return text, {"file": name, "lines": bad, "copy": copy.name}

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
        with self.writing():
            summary = self.summary(state, exports)
            # json.dumps indents ten times more slowly, and this is the owner's thread: the session waits meanwhile
            write_atomically(self.path / "summary.json", to_json(summary, indent=2).decode() + "\n")
        return summary

    def append(self, name: str, lines: Sequence[str]) -> None:
        """Append lines to a file, all of them or, after a kill, the first ones."""
        with self.writing():
            append_lines(self.path / name, lines)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Say which folder it is that cannot be written."""
        with _naming(self.path):
            yield

    def make_again(self) -> None:
        """Make the folder of a run that is over, if it is gone and was one of the federation's own."""
        if self._ours:
            with _naming(self.path):
                self.path.mkdir(parents=True, exist_ok=True)


def folder_of(state: RunState, home: Home) -> RunFolder:
    """The folder of a run: the one that its owner named, or one of the federation's."""
    return RunFolder(Path(state.folder), ours=False) if state.folder else RunFolder(home.run(state.run))


def gone(path: Path) -> RecordError:
    """The error for a run's folder that somebody has removed."""
    return RecordError(
        f"the run's folder {path} cannot be written: it is not there any more. Run the job again, and leave the "
        "folders of open runs where they are"
    )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_dir():
            raise gone(path) from error
        kind = RecordsFullError if error.errno in _FULL else RecordError
        raise kind(
            f"the run's folder {path} cannot be written: {error.strerror or error}. Free space, make it writable "
            "for the coordinator's user, or name another folder"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text so that a reader sees the old or the new, never a part."""
    replace_bytes(path, text.encode())
