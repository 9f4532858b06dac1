"""The protocol loop: one request per line in, replies out, and every failure a reply.

Imports no training stack itself, so that settings of the environment are in place before anything is.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from fedpipe_agent.train.errors import MemoryExceededError, TrainerError
from fedpipe_agent.trainer_process import QUIET
from fedpipe_agent.trainer_protocol import (
    REQUESTS,
    ErrorReply,
    EvaluateRequest,
    OpenRequest,
    Reply,
    Request,
    ScoreRequest,
    SurveyRequest,
    TrainRequest,
)
from fedpipe_data.errors import DataError

MAX_MESSAGE_CHARACTERS = 2000

Say = Callable[[Reply], None]


class Work(Protocol):
    """What answers the requests after the first."""

    def survey(self, request: SurveyRequest, /) -> None:
        """Answer a survey request."""

    def score(self, request: ScoreRequest, /) -> None:
        """Answer a score request."""

    def train(self, request: TrainRequest, /) -> None:
        """Answer a train request."""

    def evaluate(self, request: EvaluateRequest, /) -> None:
        """Answer an evaluate request."""

    def after_error(self, error: BaseException, /) -> None:
        """Clean up after a request that failed."""

    def is_out_of_memory(self, error: BaseException, /) -> bool:
        """Whether the error says that memory ran out."""

    def peak_bytes(self) -> int:
        """The most memory that was held."""


def prepare_environment(model: str, device: str, environment: MutableMapping[str, str], *, download: bool) -> None:
    """Settings that the libraries read when they are imported; what the caller set stands.

    A hub is asked only for what is no folder here, and only if it may be: `download`. Telemetry is off in any case; the
    daemon has it so already.
    """
    environment.update(QUIET)
    environment.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    offline = not download or Path(model).expanduser().is_dir()
    environment["HF_HUB_OFFLINE"] = environment["TRANSFORMERS_OFFLINE"] = "1" if offline else "0"
    if device == "cpu":
        # one tensor after the other: threads would hold several at once, and cannot start when memory is short
        environment.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")


def open_work(request: OpenRequest, say: Say) -> Work:
    """Import the training stack and open the run.

    Raises:
        TrainerError: if the stack is not installed, or as `Worker`.
    """
    prepare_environment(request.model, request.device, os.environ, download=request.download)
    # it advises, while it is imported, to fetch kernels from a hub
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from fedpipe_agent.train.worker import Worker  # noqa: PLC0415 - costs seconds, and reads the environment
    except ImportError as error:
        raise TrainerError(
            f"the training libraries cannot be imported ({error}): install them with pip install 'fedpipe[agent]'"
        ) from error
    return Worker(request, say)


def serve(lines: Iterable[bytes], say: Say, open_: Callable[[OpenRequest, Say], Work] = open_work) -> None:
    """Answer requests until there are no more."""
    work: Work | None = None
    private = ""
    for line in lines:
        try:
            request = REQUESTS.validate_json(line)
        except ValidationError as error:
            say(ErrorReply(kind="internal", message=_malformed(error)))
            continue
        try:
            if isinstance(request, OpenRequest):
                _check_vacant(work)
                # where the owner keeps a model is his own business; what the job says, its owner knows
                private = request.model if request.model != request.terms.model else ""
                work = open_(request, say)
            else:
                _answer(work, request)
        except Exception as error:  # noqa: BLE001 - whatever happens, the daemon gets an answer
            traceback.print_exc(file=sys.stderr)
            reply = without(error_reply(error, work), private)
            error.__traceback__ = None  # its frames hold the tensors of the failed request
            if work is not None:
                work.after_error(error)
            say(reply)


def _check_vacant(work: Work | None) -> None:
    if work is not None:
        raise TrainerError(
            "a run is open in this process, and what its memory held would count as free: start a process for another"
        )


def _answer(work: Work | None, request: Request) -> None:
    if work is None:
        raise TrainerError(f"request {request.op!r} before a run was opened: send 'open' first")
    match request:
        case SurveyRequest():
            work.survey(request)
        case ScoreRequest():
            work.score(request)
        case TrainRequest():
            work.train(request)
        case EvaluateRequest():
            work.evaluate(request)
        case OpenRequest():
            raise AssertionError


def error_reply(error: Exception, work: Work | None) -> ErrorReply:
    """What the daemon is told of a failure; of a dataset, only what may leave the silo."""
    if isinstance(error, MemoryExceededError):
        return ErrorReply(kind=error.kind, message=_cut(str(error)), peak_bytes=error.peak_bytes)
    if isinstance(error, TrainerError):
        return ErrorReply(kind=error.kind, message=_cut(str(error)))
    if isinstance(error, DataError):
        return ErrorReply(kind="data", message=_cut(error.outward))
    if isinstance(error, MemoryError) or (work is not None and work.is_out_of_memory(error)):
        message = f"out of memory ({_cut(str(error))}): fewer bits, a smaller batch or a larger limit is needed"
        return ErrorReply(kind="out-of-memory", message=message, peak_bytes=0 if work is None else work.peak_bytes())
    # the text of an error that nobody foresaw may quote an example: it stays in the log
    return ErrorReply(
        kind="internal", message=f"{type(error).__name__} {_where(error)}: trainer.log on this agent has all"
    )


def without(reply: ErrorReply, private: str) -> ErrorReply:
    """The reply with a private place left out of its message."""
    if not private:
        return reply
    return reply.model_copy(update={"message": reply.message.replace(private, "the model's folder")})


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return "" if last is None else f"at {Path(last.filename).name}:{last.lineno}"


def _cut(text: str) -> str:
    return text.strip()[:MAX_MESSAGE_CHARACTERS]


def _malformed(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return _cut(f"malformed request: {json.dumps(problem['loc'])}: {problem['msg']}")
