"""Updates that an enrolled agent offers in its rounds, and reports that its run does not await.

Owns the bytes that are offered and how they are sent. Every refusal comes back to the sender in an acknowledgement
that says why, and the round goes on with the good agent's update alone.
"""

import gzip
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.badinput_cases import AcceptedError, Case
from benchmarks.badinput_honest import trained
from benchmarks.badinput_yard import MODEL, Yard
from benchmarks.echo_trainer import echo_shape
from fedpipe_wire.agent_messages import Ahead, Evaluated, Failed, Refused, Survey
from fedpipe_wire.coordinator_messages import Ack, TrainTask
from fedpipe_wire.message_values import BlobRef, Metrics
from fedpipe_wire.tensor_header import encode_header
from fedpipe_wire.tensors import update_spec

KIND = "offer"
Bytes = Callable[[TrainTask], bytes]
SHAPE = echo_shape(MODEL)


def good(task: TrainTask, value: float = 0.01) -> bytes:
    """An update as the plan asks for it, of one value."""
    header, _ = encode_header(spec := update_spec(SHAPE, task.plan), None)
    return header + np.full(sum(each.nbytes for each in spec.values()) // 4, value, np.float32).tobytes()


def _header(change: Callable[[dict[str, Any]], dict[str, Any]], task: TrainTask) -> bytes:
    whole = good(task)
    length = int.from_bytes(whole[:8], "little")
    text = json.dumps(change(json.loads(whole[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def _renamed(table: dict[str, Any]) -> dict[str, Any]:
    return {f"../{name}\x1b[2J": entry for name, entry in table.items()}


def _one_less(table: dict[str, Any]) -> dict[str, Any]:
    return dict(list(table.items())[:-1])


FILES: Mapping[str, tuple[Bytes, str]] = {
    "zeros": (lambda _: bytes(5000), "header"),
    "a pickle": (lambda _: pickle.dumps([1.0] * 100), "cut short"),
    "gzip": (lambda task: gzip.compress(good(task)), "cut short"),
    "half an update": (lambda task: good(task)[: len(good(task)) // 2], "the tensors take"),
    "an update and a half": (lambda task: good(task) + bytes(3000), "the tensors take"),
    "a tensor less": (partial(_header, _one_less), "tensors|the tensors take"),
    "tensors named as paths": (partial(_header, _renamed), "do not fit the plan"),
    "NaN": (lambda task: good(task, float("nan")), "not finite"),
    "infinity": (lambda task: good(task, float("inf")), "not finite"),
    "values of 1e30": (lambda task: good(task, 1e30), "values are beyond"),
}


def _judged(yard: Yard, ack: Ack) -> str:
    if ack.accepted:
        raise AcceptedError(f"the update was taken: {ack}")
    said = yard.log.news()
    yard.check_sane(said)
    return ack.reason


def _file(yard: Yard, make: Bytes) -> str:
    yard.log.news()
    return _judged(yard, yard.mallory.offer(make(yard.mallory.in_a_round())))


def _claim(yard: Yard, **changes: Any) -> str:
    """A good update of which something else is said."""
    task = yard.mallory.in_a_round()
    ref = {name: value(task) if callable(value) else value for name, value in changes.pop("ref", {}).items()}
    changes = {name: value(task) if callable(value) else value for name, value in changes.items()}
    return _judged(yard, yard.mallory.offer(good(task), ref=ref, **changes))


def _other_bytes(yard: Yard) -> str:
    """Bytes of another name: the broker could have spoilt them, so they are asked for again, and later once more."""
    mallory = yard.mallory
    mallory.chunk = lambda _ref, _index, data: bytes(len(data))
    task, said = mallory.in_a_round(), ""
    ref, _ = mallory.promise(good(task, 0.04))
    yard.log.news()
    mallory.say(trained(task, ref))

    def told() -> bool:
        nonlocal said
        said += yard.log.news()
        return "has bytes of" in said

    try:
        mallory.until("a word of other bytes", told)
        mallory.let_go()
    finally:
        mallory.chunk = lambda _ref, _index, data: data
    yard.check_sane(said)
    return said


def _chunks(yard: Yard, change: Callable[[BlobRef, int, bytes], bytes], index: int = 0) -> str:
    """A good update whose chunks come wrong: what is said of the first; then the round is given up."""
    mallory = yard.mallory
    mallory.chunk = change
    task, data = mallory.in_a_round(), good(mallory.in_a_round(), 0.02)
    try:
        ref, offered = mallory.promise(data, index)

        def send() -> None:
            mallory.say(trained(task, ref))
            mallory.until("a request for chunks", lambda: offered() > 0)

        said = yard.said_of(send)
        mallory.let_go()
        return said
    finally:
        mallory.chunk = lambda _ref, _index, chunk: chunk


def _stale(yard: Yard, change: Callable[[TrainTask], Any]) -> str:
    """A report that this run does not await, and what its sender is told, or the record says."""
    mallory = yard.mallory
    task = mallory.in_a_round()
    return yard.said_of(lambda: mallory.say(change(task)))


def _offer_of(yard: Yard, **changes: Any) -> str:
    """An offer for something else than the task in hand."""
    mallory = yard.mallory
    task = mallory.in_a_round()
    data = good(task, 0.03)
    round_ = changes.pop("round", lambda task: task.round)(task)
    ack = mallory.offer(data, round=round_, **changes)
    return _judged(yard, ack)


def _metrics(task: TrainTask) -> Evaluated:
    return Evaluated(run=task.run, round=task.round + 7, metrics=Metrics(loss=0.0, examples=1))


STALE: Mapping[str, tuple[Callable[[TrainTask], Any], str]] = {
    "a report of an unknown run": (
        lambda task: Failed(run=f"{task.run}-x", round=1, kind="data", message="x"),
        r"\[stale\]",
    ),
    "metrics of a round to come": (_metrics, "gone back in time"),
    "a refusal of a round that is over": (
        lambda task: Refused(run=task.run, round=1, reason="\x1b[2J\x07"),
        r"says of round 1, which it does not owe",
    ),
    "a round ahead of all": (lambda task: Ahead(run=task.run, round=1 << 31), "gone back in time"),
    "a failure of round 2^31": (
        lambda task: Failed(run=task.run, round=1 << 31, kind="time", message="\x1b]0;owned\x07"),
        "does not owe|^nothing$",
    ),
    "a second survey": (
        lambda task: Survey(run=task.run, shape=SHAPE, train_examples=1, held_out_examples=1, mean_tokens=1.0),
        "^nothing$",
    ),
}


def _cases(yard: Yard) -> Iterator[Case]:
    for name, (make, says) in FILES.items():
        yield Case(KIND, name, partial(_file, yard, make), says)
    too_many: Callable[[TrainTask], int] = lambda task: task.plan.examples + 1  # noqa: E731
    yield Case(KIND, "one example too many", partial(_claim, yard, examples=too_many), "were planned")
    yield Case(KIND, "2^53 examples", partial(_claim, yard, examples=1 << 53), "were planned")
    yield Case(KIND, "2^53 bytes", partial(_claim, yard, ref={"size": 1 << 53}), "its plan allows")
    yield Case(KIND, "chunks of 2^40 bytes", partial(_claim, yard, ref={"chunk_bytes": 1 << 40}), "fit a packet")
    yield Case(KIND, "bytes of another name", partial(_other_bytes, yard), "did not arrive: .* has bytes of")
    longer = partial(_chunks, yard, lambda _ref, _index, data: data + b"x")
    yield Case(KIND, "a chunk that is too long", longer, r"\[malformed\].*bytes")
    yield Case(
        KIND, "a chunk that is too short", partial(_chunks, yard, lambda _r, _i, data: data[:-1]), r"\[malformed\]"
    )
    yield Case(KIND, "a chunk beyond the last", partial(_chunks, yard, lambda _r, _i, data: data, 999), "is outside")
    yield Case(KIND, "of an unknown run", partial(_offer_of, yard, run="nobody-20300101-000000-0000"), "knows no run")
    yield Case(
        KIND, "of a round to come", partial(_offer_of, yard, round=lambda task: task.round + 5), "not known here"
    )
    yield Case(KIND, "of the first round", partial(_offer_of, yard, round=lambda _: 1), "is over")
    for name, (change, says) in STALE.items():
        yield Case("report", name, partial(_stale, yard, change), says)


def cases(yard: Yard) -> list[Case]:
    """All of this kind."""
    return list(_cases(yard))
