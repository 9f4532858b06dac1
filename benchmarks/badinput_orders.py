"""Orders that no owner of a machine would want carried out, from a coordinator that holds the federation's keys.

Owns what is ordered. The agent refuses, tries and fails with a reason, or does not listen; it never sends an update.
"""

import base64
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.badinput_cases import AcceptedError, Case
from benchmarks.badinput_tyrant import AGENT, SHAPE, TERMS, Court, adapter_bytes
from benchmarks.badinput_yard import RANK
from fedpipe_profiles.plan import Prediction
from fedpipe_wire.agent_messages import Refused, Trained
from fedpipe_wire.blob_bits import encode_bitmap
from fedpipe_wire.coordinator_messages import (
    Ack,
    BlobRequest,
    CoordinatorMessage,
    EndTask,
    ScoreTask,
    SurveyTask,
    Welcome,
)
from fedpipe_wire.messages import COORDINATOR_CHANNELS, encode

KIND = "order"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
FIRST = SHAPE.weights[0].name
MALFORMED = "refused what came on .*malformed message"
PLANS: Mapping[str, tuple[dict[str, Any], str]] = {
    "2^50 bytes of memory": (
        {"predicted": Prediction(peak_bytes=1 << 50, round_s=1.0, compute_s=1.0, up_bytes=1, down_bytes=1)},
        "this device lends",
    ),
    "another agent's plan": ({"agent": "agent-2"}, "the plan is for agent 'agent-2'"),
    "bits that it has not": ({"bits": 4}, "this device supports"),
    "a batch that the job does not allow": ({"batch_size": 1 << 16}, "its job allows"),
    "longer examples than the job's": ({"sequence_length": 1 << 30}, "tokens per example, its job for"),
    "components beyond the global rank": ({"components": {FIRST: (0, RANK)}}, "beyond the global rank"),
    "component 2^31": ({"components": {FIRST: (0, 1 << 31)}}, "beyond the global rank"),
    "a component 50,000 times": ({"components": {FIRST: (0,) * 50_000}}, "twice"),
    "a weight that there is not": ({"components": {"../../etc": (0,)}}, "failed"),
    "a global rank that the adapter has not": ({"global_rank": 1 << 31, "components": {FIRST: (9,)}}, "failed"),
    "a deadline of a moment": ({"deadline_s": 1e-9}, "s are left of"),
}
FIELDS: Mapping[str, tuple[tuple[str, ...], Any, str]] = {
    "a batch of 2^31": (("plan", "batch_size"), 1 << 31, MALFORMED),
    "a batch of 0": (("plan", "batch_size"), 0, MALFORMED),
    "a learning rate of 1e300": (("plan", "learning_rate"), 1e300, MALFORMED),
    "a learning rate of NaN": (("plan", "learning_rate"), float("nan"), MALFORMED),
    "a negative learning rate": (("plan", "learning_rate"), -1.0, MALFORMED),
    "a deadline of 1e30 s": (("plan", "deadline_s"), 1e30, MALFORMED),
    "10^400 examples": (("plan", "examples"), 10**400, MALFORMED),
    "no examples": (("plan", "examples"), 0, MALFORMED),
    "a sequence of 2^40": (("plan", "sequence_length"), 1 << 40, MALFORMED),
    "a rank of 2^40": (("plan", "global_rank"), 1 << 40, MALFORMED),
    "a component below zero": (("plan", "components"), {FIRST: [-1]}, MALFORMED),
    "a scale of infinity": (("plan", "scale"), float("inf"), MALFORMED),
    "a reason of 10,000 characters": (("plan", "reason"), "x" * 10_000, MALFORMED),
    "round 0": (("round",), 0, MALFORMED),
    "an epoch of 10^400": (("epoch",), 10**400, MALFORMED),
    "a run of 10,000 characters": (("run",), "r" * 10_000, MALFORMED),
    "a run that is a path": (("run",), "../../etc", MALFORMED),
    "a run with a terminal escape": (("run",), f"r{ESCAPE}", MALFORMED),
    "10,001 labels": (("labels",), [str(number) for number in range(10_001)], MALFORMED),
    "no batch sizes": (("terms", "batch_sizes"), [], MALFORMED),
    "a model of 10,000 characters": (("terms", "model"), "m" * 10_000, MALFORMED),
    "a dataset of 10,000 characters": (("terms", "dataset"), "d" * 10_000, MALFORMED),
    "a task that there is not": (("terms", "task"), "exec", MALFORMED),
    "a model hash that is none": (("terms", "model_sha256"), "../..", MALFORMED),
    "an adapter named by a path": (("adapter", "sha256"), "../../../etc/passwd", MALFORMED),
    "an adapter of no bytes": (("adapter", "size"), 0, MALFORMED),
    "an adapter of 10^400 bytes": (("adapter", "size"), 10**400, MALFORMED),
}
END = b'{"type": "end-task", "run": "r", "reason": ""}'
RAW: Mapping[str, tuple[str, bytes, str]] = {
    "nothing": ("task", b"", MALFORMED),
    "lists 400,000 deep": ("task", b"[" * 400_000, MALFORMED),
    "one byte too many": ("task", b" " * 1_000_001, "at most 1000000"),
    "not UTF-8": ("task", b'{"type": "\xff"}', MALFORMED),
    "an agent's message": ("task", b'{"type": "refused", "run": "r", "round": 0, "reason": ""}', MALFORMED),
    "an end among acknowledgements": ("ack", END, "belongs on 'task'"),
    "a channel that there is not": (
        "command",
        END,
        "refused what came on",
    ),
    "a welcome of 10,000 characters": (
        "presence",
        b'{"type": "welcome", "session": "%s"}' % (b"s" * 10_000),
        MALFORMED,
    ),
}


def plan_of(court: Court, changes: dict[str, Any]) -> str:
    """What the agent answers to a good task whose plan has these changes."""
    tyrant, run = court.tyrant, court.tyrant.new_run()
    tyrant.say(tyrant.train_task(run, **changes))
    return tyrant.answer(run)


def _terms(court: Court, **changes: Any) -> str:
    tyrant, run = court.tyrant, court.tyrant.new_run()
    tyrant.say(SurveyTask(run=run, terms=TERMS.model_copy(update=changes)))
    return tyrant.answer(run)


def _field(court: Court, path: tuple[str, ...], value: Any) -> str:
    tyrant, run = court.tyrant, court.tyrant.new_run()
    whole: Any = json.loads(encode(tyrant.train_task(run)))
    inner = whole
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return court.said_of(lambda: tyrant.send("task", json.dumps(whole).encode()))


def _adapter(court: Court, data: bytes, chunk: Callable[[bytes], bytes] = lambda data: data, **changes: Any) -> str:
    """A good task whose adapter is bad."""
    tyrant, run = court.tyrant, court.tyrant.new_run()
    tyrant.chunk = chunk
    try:
        tyrant.say(tyrant.train_task(run, adapter=tyrant.lend(data, **changes)))
        return tyrant.answer(run, 60.0)
    finally:
        tyrant.chunk = lambda part: part


def _absent(court: Court) -> str:
    tyrant, run = court.tyrant, court.tyrant.new_run()
    ref = tyrant.lend(adapter_bytes(0.5)).model_copy(update={"sha256": "c" * 64})
    tyrant.say(tyrant.train_task(run, adapter=ref))
    return tyrant.answer(run, 60.0)


def _good(court: Court) -> tuple[str, bytes]:
    run = court.tyrant.new_run()
    return run, encode(SurveyTask(run=run, terms=TERMS))


def _unless_done(court: Court, run: str, said: str) -> str:
    if any(getattr(message, "run", "") == run for message in court.tyrant.heard):
        raise AcceptedError(f"it worked on {run}")
    return said


def _seal(court: Court, change: Callable[[Court, str, bytes], dict[str, str]], *, twice: bool = False) -> str:
    """A good task in a bad envelope."""
    tyrant, (run, payload) = court.tyrant, _good(court)
    topic = tyrant.topics.down(AGENT, "task")
    properties = change(court, topic, payload)
    if twice:
        tyrant.publish(topic, payload, properties)
        tyrant.fence()
        tyrant.heard = [message for message in tyrant.heard if getattr(message, "run", "") != run]
    return _unless_done(court, run, court.said_of(lambda: tyrant.publish(topic, payload, properties)))


def _honest(court: Court, topic: str, payload: bytes) -> dict[str, str]:
    return court.tyrant.sealer.seal(topic, payload).properties()


def _stranger(court: Court, topic: str, payload: bytes) -> dict[str, str]:
    return replace(court.tyrant.sealer, key=Ed25519PrivateKey.generate()).seal(topic, payload).properties()


def _elsewhere(court: Court, topic: str, payload: bytes) -> dict[str, str]:
    del topic
    return court.tyrant.sealer.seal(court.tyrant.topics.down("agent-2", "task"), payload).properties()


def _other_word(court: Court, topic: str, payload: bytes) -> dict[str, str]:
    return court.tyrant.sealer.seal(topic, payload + b" ").properties()


def _old(court: Court, topic: str, payload: bytes) -> dict[str, str]:
    return replace(court.tyrant.sealer, next_counter=lambda: 3).seal(topic, payload).properties()


def _unsigned(court: Court, topic: str, payload: bytes) -> dict[str, str]:
    return replace(court.tyrant.sealer, key=None).seal(topic, payload).properties()


SEALS: Mapping[str, tuple[Callable[[Court, str, bytes], dict[str, str]], bool, str]] = {
    "without an envelope": (lambda _court, _topic, _payload: {}, False, "without user property"),
    "unsigned": (_unsigned, False, "is not signed by"),
    "signed by a stranger": (_stranger, False, "not one of _coordinator's"),
    "sealed for another agent": (_elsewhere, False, "the signature is not"),
    "sealed for other words": (_other_word, False, "the signature is not"),
    "of long ago": (_old, False, "heard before, or is older"),
    "said twice": (_honest, True, "heard before, or is older"),
}


def _silent(court: Court, word: CoordinatorMessage) -> str:
    return court.said_of(lambda: court.tyrant.send(COORDINATOR_CHANNELS[type(word)], encode(word)))


def _bitmap(court: Court, bitmap: str, times: int = 1) -> str:
    """Requests for chunks of an update that the agent has ready."""
    tyrant, run = court.tyrant, court.tyrant.new_run()
    tyrant.say(tyrant.train_task(run))
    update = tyrant.wait_for(Trained, lambda trained: trained.run == run).update

    def ask() -> None:
        for _ in range(times):
            tyrant.say(BlobRequest(sha256=update.sha256, bitmap=bitmap))

    try:
        return court.said_of(ask)
    finally:
        tyrant.say(EndTask(run=run, reason="done"))


def _overtaken(court: Court) -> str:
    """A task of a round before the one that the agent has done."""
    tyrant, run = court.tyrant, court.tyrant.new_run()
    task = tyrant.train_task(run)
    later = task.model_copy(update={"round": 5, "plan": task.plan.model_copy(update={"round": 5})})
    tyrant.say(later)
    tyrant.wait_for(Trained, lambda trained: trained.run == run)
    tyrant.heard.clear()
    tyrant.say(task)
    return tyrant.wait_for(Refused, lambda refused: refused.run == run).reason


def _tasks(court: Court) -> Iterator[tuple[str, Callable[[], str], str]]:
    for name, (changes, says) in PLANS.items():
        yield name, partial(plan_of, court, changes), says
    for name, (path, value, says) in FIELDS.items():
        yield f"field: {name}", partial(_field, court, path, value), says
    for name, (channel, payload, says) in RAW.items():
        send = partial(court.tyrant.send, channel, payload)
        yield f"payload: {name}", partial(court.said_of, send), says
    for model in ("../../etc", "/etc", "~root", f"x{ESCAPE}"):
        yield f"the model {ascii(model)[1:-1]}", partial(_terms, court, model=model), r"failed \(model\)"
    for dataset in ("claims", "../../etc/passwd", f"x{ESCAPE}", ""):
        name = f"the dataset {ascii(dataset)[1:-1]!r}"
        yield name, partial(_terms, court, dataset=dataset), "refused: no dataset"
    for name, (change, twice, says) in SEALS.items():
        yield f"a task {name}", partial(_seal, court, change, twice=twice), says


def _blobs(court: Court) -> Iterator[tuple[str, Callable[[], str], str]]:
    yield "an adapter of zeros", partial(_adapter, court, bytes(5000)), "failed"
    yield "an adapter in pickle", partial(_adapter, court, pickle.dumps([1.0] * 500)), "failed"
    yield "half an adapter", partial(_adapter, court, adapter_bytes(0.3)[:2000]), "failed"
    too_large = partial(_adapter, court, b"x" * 100, size=1 << 53)
    yield "an adapter of 2^53 bytes", too_large, r"failed \(transfer\): .*at most"
    huge_chunks = partial(_adapter, court, b"y" * 100, chunk_bytes=1 << 40)
    yield "an adapter in chunks of 2^40 bytes", huge_chunks, r"failed \(transfer\): .*fit a packet"
    many = partial(_adapter, court, b"z" * 100, size=1 << 30, chunk_bytes=1)
    yield "an adapter in 2^30 chunks", many, r"failed \(transfer\): .*at most"
    spoilt = partial(_adapter, court, adapter_bytes(0.2), lambda data: bytes(len(data)))
    yield "an adapter of other bytes", spoilt, r"failed \(transfer\): .*has bytes of"
    yield "an adapter that never comes", partial(_absent, court), r"failed \(transfer\): .*did not come"
    for name, bitmap, times, says in (
        ("is not base64", "****", 1, "not base64"),
        ("is too long", base64.b64encode(bytes(1000)).decode(), 1, "must have exactly"),
        ("is empty", "", 1, "must have exactly"),
        ("names a chunk beyond the last", encode_bitmap(0x80, 8), 1, "names chunk 7"),
    ):
        yield f"a bitmap that {name}", partial(_bitmap, court, bitmap, times), says


def _words(court: Court) -> Iterator[tuple[str, Callable[[], str], str]]:
    unknown = "d" * 64
    quiet: Mapping[str, tuple[CoordinatorMessage, str]] = {
        "a request for a blob that it has not": (BlobRequest(sha256=unknown, bitmap="AA=="), "not offered here"),
        "an acknowledgement of nothing": (Ack(run="r", round=1, sha256=unknown, accepted=True), "nothing to do"),
        "a refusal of nothing, with a terminal escape": (
            Ack(run="r", round=1, sha256=unknown, accepted=False, reason=ESCAPE),
            "is not in the outbox",
        ),
        "the end of a run that it has not": (EndTask(run="nobody", reason=ESCAPE), "^nothing$"),
        "a welcome for somebody else": (Welcome(session="x" * 64), "^nothing$"),
    }
    for name, (message, says) in quiet.items():
        yield name, partial(_silent, court, message), says
    yield "a task that was overtaken", partial(_overtaken, court), "has seen round 5 already"
    for name, retain in (("a chunk", False), ("a chunk to keep", True)):
        topic = court.tyrant.topics.broadcast_chunk(unknown, 0)
        act = partial(court.tyrant.publish, topic, bytes(1000), retain=retain)
        yield f"{name} that nobody asked for", partial(court.said_of, act), "^nothing$|broker to keep a chunk"
    score = ScoreTask(run="s", terms=TERMS, batches=1, deadline_s=1.0)
    payload = encode(score).replace(b'"deadline_s":1.0', b'"deadline_s":-1')
    yield "scores in negative time", partial(court.said_of, partial(court.tyrant.send, "task", payload)), MALFORMED


def cases(court: Court) -> list[Case]:
    """All of this kind."""
    return [Case(KIND, *case) for part in (_tasks, _blobs, _words) for case in part(court)]
