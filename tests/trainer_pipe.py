"""The trainer as a process, spoken to as its daemon does: one request per line in, replies out."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fedpipe_agent.trainer_process import trainer_environment
from fedpipe_agent.trainer_protocol import REPLIES, OpenRequest, ProgressReply, Reply
from fedpipe_data.source import DatasetSource
from fedpipe_profiles.device import MIB
from fedpipe_wire.message_values import JobTerms

R = TypeVar("R")
LIMIT = 3000 * MIB


class Trainer:
    """The process, its requests and its replies."""

    def __init__(self, log: Path, limit: int) -> None:
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedpipe_agent.train"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=trainer_environment(1, limit, os.environ),
            )

    def send(self, request: Any) -> None:
        self.send_line(request.model_dump_json())

    def send_line(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def next(self) -> Reply:
        """The next reply that is not mere progress."""
        assert self.process.stdout is not None
        while True:
            reply = REPLIES.validate_json(self.process.stdout.readline())
            if not isinstance(reply, ProgressReply):
                return reply

    def expect(self, kind: type[R]) -> R:
        reply = self.next()
        assert isinstance(reply, kind), reply
        return reply


@contextmanager
def trainer(log: Path, limit: int = LIMIT) -> Iterator[Trainer]:
    """A trainer in the environment that its daemon would give it for `limit` bytes."""
    started = Trainer(log, limit)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait(10)
        for pipe in (started.process.stdin, started.process.stdout):
            assert pipe is not None
            pipe.close()


def make_open(model: Path, data: Path, task: str, **changes: Any) -> OpenRequest:
    terms = JobTerms.model_validate(
        {
            "name": "job",
            "model": "tiny",
            "task": task,
            "dataset": "d",
            "seed": 5,
            "sequence_length": 32,
            "evaluation_examples": 12,
            "max_rank": 4,
            "batch_sizes": (2, 8),
        }
        | changes.pop("terms", {})
    )
    values: dict[str, Any] = {
        "run": "run-1",
        "terms": terms,
        "model": str(model),
        "dataset": DatasetSource(path=data, held_out_fraction=0.3),
        "device": "cpu",
        "supported_bits": (4, 8, 16, 32),
        "memory_limit_bytes": LIMIT,
        "threads": 1,
    }
    return OpenRequest.model_validate(values | changes)
