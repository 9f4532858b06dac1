"""The protocol loop with a stand-in for the work: whatever happens is one reply, and the loop goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedpipe_agent.train.errors import MemoryExceededError, ModelError, OutOfTimeError
from fedpipe_agent.train.serve import MAX_MESSAGE_CHARACTERS, Say, prepare_environment, serve
from fedpipe_agent.trainer_protocol import ErrorReply, Opened, OpenRequest, Reply, ScoreRequest, SurveyRequest
from fedpipe_data.errors import MissingFileError
from fedpipe_data.source import DatasetSource
from fedpipe_wire.message_values import JobTerms

OPEN = OpenRequest(
    run="r",
    terms=JobTerms(
        name="j",
        model="m",
        task="causal-lm",
        dataset="d",
        seed=0,
        sequence_length=8,
        evaluation_examples=8,
        max_rank=2,
        batch_sizes=(2,),
    ),
    model="m",
    dataset=DatasetSource(path=Path("/data/private.csv")),
    device="cpu",
    supported_bits=(32,),
    memory_limit_bytes=1,
    threads=1,
)
SURVEY = SurveyRequest().model_dump_json().encode()
SCORE = ScoreRequest(labels=(), batches=1, budget_s=1.0).model_dump_json().encode()


class Fake:
    """Work that fails as told; remembers what it was asked."""

    def __init__(self, failures: list[BaseException | None]) -> None:
        self.failures, self.cleaned = failures, list[BaseException]()

    def survey(self, _request: Any) -> None:
        failure = self.failures.pop(0)
        if failure is not None:
            raise failure

    score = train = evaluate = survey

    def after_error(self, error: BaseException) -> None:
        self.cleaned.append(error)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def peak_bytes(self) -> int:
        return 77


def run(lines: list[bytes], *works: Fake | BaseException) -> list[Reply]:
    said: list[Reply] = []
    left = list(works)

    def open_(_request: OpenRequest, say: Say) -> Fake:
        work = left.pop(0)
        if isinstance(work, BaseException):
            raise work
        say(Opened(context_bytes=1))
        return work

    serve(lines, said.append, open_)
    return said


def line(request: OpenRequest) -> bytes:
    return request.model_dump_json().encode()


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        (ModelError("no weights"), "model", "no weights"),
        (OutOfTimeError("too late"), "time", "too late"),
        (MissingFileError("no file", "make one", path=Path("/data/private.csv")), "data", "no file; make one"),
        (ZeroDivisionError("by zero"), "internal", "ZeroDivisionError at test_train_serve.py"),
        (KeyError("an example's private words"), "internal", "KeyError at test_train_serve.py"),
        (ModelError("y" * 99_999), "model", "yyy"),
    ],
)
def test_every_failure_is_a_reply_and_the_next_request_works(
    failure: BaseException, kind: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Fake([failure, None, ModelError("second")])
    said = run([line(OPEN), SURVEY, SURVEY, SCORE], work)
    assert [type(reply) for reply in said] == [Opened, ErrorReply, ErrorReply]
    first = said[1]
    assert isinstance(first, ErrorReply)
    assert first.kind == kind
    assert first.message.startswith(text)
    assert len(first.message) <= MAX_MESSAGE_CHARACTERS
    assert "private" not in first.message
    assert work.cleaned[0] is failure
    captured = capsys.readouterr()
    assert captured.out == ""
    assert type(failure).__name__ in captured.err


def test_where_the_owner_keeps_a_model_stays_in_the_silo() -> None:
    mapped = OPEN.model_copy(update={"model": "/srv/private/base"})
    said = run([line(mapped), SURVEY], Fake([ModelError("/srv/private/base holds no weights")]))
    assert [reply.message for reply in said if isinstance(reply, ErrorReply)] == ["the model's folder holds no weights"]


def test_out_of_memory_says_the_peak() -> None:
    said = run([line(OPEN), SURVEY, SURVEY], Fake([MemoryExceededError("too much", 55), MemoryError("malloc")]))
    peaks = [(reply.kind, reply.peak_bytes) for reply in said if isinstance(reply, ErrorReply)]
    assert peaks == [("out-of-memory", 55), ("out-of-memory", 77)]


def test_a_request_before_open_is_refused() -> None:
    (reply,) = run([SURVEY])
    assert isinstance(reply, ErrorReply)
    assert "send 'open' first" in reply.message


def test_a_failed_open_leaves_nothing_open() -> None:
    work = Fake([None])
    said = run([line(OPEN), SURVEY, line(OPEN)], ModelError("gone"), work)
    assert [type(reply) for reply in said] == [ErrorReply, ErrorReply, Opened]


def test_a_second_run_in_the_same_process_is_refused() -> None:
    said = run([line(OPEN), line(OPEN)], Fake([None]), Fake([None]))
    assert [type(reply) for reply in said] == [Opened, ErrorReply]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"op":"dance"}', b'{"op":"score"}', b"\xff\xfe"])
def test_a_malformed_line_is_refused_and_the_next_works(text: bytes) -> None:
    work = Fake([None])
    said = run([text, line(OPEN), SURVEY], work)
    assert [type(reply) for reply in said] == [ErrorReply, Opened]
    assert work.failures == []
    json.loads(said[0].model_dump_json())


def test_only_what_may_be_downloaded_and_is_no_folder_is_looked_for_on_a_hub(tmp_path: Path) -> None:
    hub: dict[str, str] = {}
    prepare_environment("some/model", "cuda", hub, download=True)
    assert hub["HF_HUB_OFFLINE"] == "0"
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in hub
    assert hub["HF_HUB_DISABLE_TELEMETRY"] == hub["DO_NOT_TRACK"] == "1"
    careless = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "0"}
    prepare_environment("some/model", "cuda", careless, download=False)
    assert careless["HF_HUB_OFFLINE"] == careless["HF_HUB_DISABLE_TELEMETRY"] == "1"
    local = {"PYTORCH_ALLOC_CONF": "mine"}
    prepare_environment(str(tmp_path), "cpu", local, download=True)
    assert local["HF_HUB_OFFLINE"] == local["HF_DEACTIVATE_ASYNC_LOAD"] == "1"
    assert local["PYTORCH_ALLOC_CONF"] == "mine"
