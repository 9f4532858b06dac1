"""Well-sealed messages whose content is absurd: profiles, surveys, scores, metrics and offers beyond every bound.

Owns which field holds what. Each is a good message with one value changed, so that nothing else can be what is wrong.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks.badinput_cases import AcceptedError, Case
from benchmarks.badinput_honest import plain, profile, scored, survey, trained
from benchmarks.badinput_yard import Yard
from fedpipe_profiles.model import WeightShape
from fedpipe_wire.agent_messages import AgentMessage, Evaluated, Failed, Profile, Scored, Survey
from fedpipe_wire.coordinator_messages import EndTask, TrainTask
from fedpipe_wire.message_values import BlobRef, Metrics
from fedpipe_wire.messages import AGENT_CHANNELS

HUGE = 10**400
NAN, INF = float("nan"), float("inf")
LONG = "x" * 10_000
Path = tuple[str | int, ...]
PROFILES: Mapping[str, tuple[Path, Any]] = {
    "an agent of 10,000 characters": (("agent",), LONG),
    "a form of the future": (("schema_version",), 2),
    "no processor threads": (("host", "threads"), 0),
    "minus one thread": (("host", "threads"), -1),
    "half a thread": (("host", "threads"), 0.5),
    "10^400 threads": (("host", "threads"), HUGE),
    "no memory": (("host", "total_bytes"), 0),
    "10^400 bytes of memory": (("host", "total_bytes"), HUGE),
    "2^53 + 1 bytes of memory": (("host", "total_bytes"), (1 << 53) + 1),
    "minus one free byte": (("host", "free_bytes"), -1),
    "1e308 free bytes": (("host", "free_bytes"), 1e308),
    "NaN free bytes": (("host", "free_bytes"), NAN),
    "a processor of 10,000 characters": (("host", "cpu"), LONG),
    "no bits": (("supported_bits",), []),
    "3 bits": (("supported_bits",), [3]),
    "bits 300,000 times": (("supported_bits",), [4] * 300_000),
    "no rate": (("matmul",), []),
    "a rate of 0": (("matmul", 0, "flops_per_s"), 0.0),
    "a rate of 1e308": (("matmul", 0, "flops_per_s"), 1e308),
    "a rate of infinity": (("matmul", 0, "flops_per_s"), INF),
    "a negative spread": (("matmul", 0, "relative_spread"), -1.0),
    "a matrix of 2^40 rows": (("matmul", 0, "shape", 0), 1 << 40),
    "a memory that stands still": (("bandwidth", "bytes_per_s"), 0.0),
    "a link of 1e-300 bit/s": (
        ("link",),
        {"uplink_bps": 1e-300, "downlink_bps": 1e6, "latency_s": 0, "measured_bytes": 1},
    ),
    "a link of negative delay": (
        ("link",),
        {"uplink_bps": 1e6, "downlink_bps": 1e6, "latency_s": -1, "measured_bytes": 1},
    ),
    "a limit of no memory": (("limits",), {"memory_bytes": 0}),
    "a limit of -1 threads": (("limits",), {"threads": -1}),
    "a dataset of 10,000 characters": (("datasets",), [LONG]),
    "100,000 datasets": (("datasets",), [str(number) for number in range(100_000)]),
    "versions of 10,000 characters": (("versions",), {"torch": LONG}),
    "50,000 versions": (("versions",), {str(number): "1" for number in range(50_000)}),
}
SURVEYS: Mapping[str, tuple[Path, Any]] = {
    "no examples": (("train_examples",), 0),
    "10^400 examples": (("train_examples",), HUGE),
    "nothing held out": (("held_out_examples",), -5),
    "examples of 1e308 tokens": (("mean_tokens",), 1e308),
    "examples of no tokens": (("mean_tokens",), 0.0),
    "examples of NaN tokens": (("mean_tokens",), NAN),
    "a label of 10,000 characters": (("labels",), [LONG]),
    "10,001 labels": (("labels",), [str(number) for number in range(10_001)]),
    "labels that are numbers": (("labels",), [1, 2]),
    "no weights": (("shape", "weights"), []),
    "a weight of no rows": (("shape", "weights", 0, "d_out"), 0),
    "a weight of 2^40 rows": (("shape", "weights", 0, "d_out"), 1 << 40),
    "a weight with a name of 10,000 characters": (("shape", "weights", 0, "name"), LONG),
    "a fingerprint of 10,000 characters": (("shape", "fingerprint"), LONG),
    "-1 heads": (("shape", "heads"), -1),
    "a head of 5 dimensions": (("shape", "head"), [{"name": "head.w", "shape": [1, 1, 1, 1, 1]}]),
}
SCORES: Mapping[str, tuple[Path, Any]] = {
    "of no examples": (("contribution", "examples"), 0),
    "of 2^53 + 1 examples": (("contribution", "examples"), (1 << 53) + 1),
    "without curves": (("contribution", "curves"), {}),
    "with a curve of NaN": (("contribution", "curves", "layer.0"), [NAN]),
    "with a curve below zero": (("contribution", "curves", "layer.0"), [-1.0]),
    "with a curve of 1e308": (("contribution", "curves", "layer.0"), [1e308]),
    "without measurements": (("measurements",), []),
    "with a step of no time": (("measurements", 0, "step_s"), 0.0),
    "with a batch of 2^40": (("measurements", 0, "batch_size"), 1 << 40),
    "with a peak of -1 bytes": (("measurements", 0, "peak_bytes"), -1),
}
RESULTS: Mapping[str, tuple[str, Path, Any]] = {
    "a loss of NaN": ("evaluated", ("metrics", "loss"), NAN),
    "a loss of 1e308": ("evaluated", ("metrics", "loss"), 1e308),
    "an accuracy of 2": ("evaluated", ("metrics", "accuracy"), 2.0),
    "metrics of no examples": ("evaluated", ("metrics", "examples"), 0),
    "metrics of round 0": ("evaluated", ("round",), 0),
    "a training loss of infinity": ("trained", ("train_loss",), INF),
    "a download in negative time": ("trained", ("download_s",), -1.0),
    "a computation of 1e300 s": ("trained", ("compute_s",), 1e300),
    "an action of 10,000 characters": ("trained", ("actions",), [LONG]),
    "200,000 actions": ("trained", ("actions",), [""] * 200_000),
    "an update of no bytes": ("trained", ("update", "size"), 0),
    "an update of 2^60 bytes": ("trained", ("update", "size"), 1 << 60),
    "an update in chunks of no bytes": ("trained", ("update", "chunk_bytes"), 0),
    "an update whose name is a path": ("trained", ("update", "sha256"), "../../../../etc/passwd"),
    "an update whose name is upper case": ("trained", ("update", "sha256"), "AB" * 32),
    "no steps": ("trained", ("steps",), 0),
    "a failure of an unknown kind": ("failed", ("kind",), "sabotage"),
    "a failure of 10^400 bytes": ("failed", ("peak_bytes",), HUGE),
    "a failure of 10,000 characters": ("failed", ("message",), LONG),
}


def changed(message: AgentMessage, path: Path, value: Any) -> bytes:
    """A message with one value changed, as JSON of Python's kind: it may hold NaN."""
    whole = plain(message)
    inner: Any = whole
    for part in path[:-1]:
        inner = inner.setdefault(part, {}) if isinstance(inner, dict) else inner[part]
    inner[path[-1]] = value
    return json.dumps(whole).encode()


def _say(yard: Yard, message: AgentMessage, path: Path, value: Any) -> str:
    payload = changed(message, path, value)
    channel, retain = AGENT_CHANNELS[type(message)], isinstance(message, Profile)
    return yard.said_of(lambda: yard.mallory.send(channel, payload, retain=retain))


def _results(task: TrainTask) -> dict[str, AgentMessage]:
    ref = BlobRef(sha256="a" * 64, size=100, chunk_bytes=100)
    return {
        "evaluated": Evaluated(run=task.run, round=task.round, metrics=Metrics(loss=1.0, examples=1)),
        "trained": trained(task, ref),
        "failed": Failed(run=task.run, round=task.round, kind="internal", message="it broke"),
    }


def _malformed(yard: Yard) -> Iterator[Case]:
    mallory = yard.mallory
    task = mallory.in_a_round()
    good, says = Profile(profile=profile(mallory.name, mallory.dataset)), r"\[(malformed|oversize)\]"
    for name, (path, value) in PROFILES.items():
        yield Case("profile", name, partial(_say, yard, good, ("profile", *path), value), says)
    surveyed, scores = survey(task.run, task.terms), scored(task.run, task.terms)
    for name, (path, value) in SURVEYS.items():
        yield Case("report", f"survey: {name}", partial(_say, yard, surveyed, path, value), says)
    for name, (path, value) in SCORES.items():
        yield Case("report", f"scores {name}", partial(_say, yard, scores, path, value), says)
    results = _results(task)
    for name, (which, path, value) in RESULTS.items():
        yield Case("report", name, partial(_say, yard, results[which], path, value), says)


def _others_profile(yard: Yard) -> str:
    mallory = yard.mallory
    foreign = Profile(profile=profile("agent-1", mallory.dataset))
    said = yard.said_of(lambda: mallory.say(foreign, retain=True))
    mallory.say(Profile(profile=profile(mallory.name, mallory.dataset)), retain=True)
    return said


def _left_out(yard: Yard, name: str, change: Any) -> str:
    """An agent that joins the run and says what cannot belong to it: why it is left out."""
    eve = yard.hostile(name)
    eve.instead = change
    eve.join()
    try:
        end = eve.wait_for(EndTask)
        yard.mallory.fence()
        standing = yard.fleet.status(yard.run)["agents"].get(name)
        if standing != "refused":
            raise AcceptedError(f"{name} stands as {standing}: {end.reason}")
        return end.reason
    finally:
        eve.leave()


def _survey(**changes: Any) -> Any:
    return lambda message: message.model_copy(update=changes) if isinstance(message, Survey) else message


def _shape(**changes: Any) -> Any:
    def change(message: AgentMessage) -> AgentMessage:
        if not isinstance(message, Survey):
            return message
        return message.model_copy(update={"shape": message.shape.model_copy(update=changes)})

    return change


def _curves(curves: Mapping[str, tuple[float, ...]]) -> Any:
    def change(message: AgentMessage) -> AgentMessage:
        if not isinstance(message, Scored):
            return message
        contribution = message.contribution.model_copy(update={"curves": dict(curves)})
        return message.model_copy(update={"contribution": contribution})

    return change


_MANY = tuple(WeightShape(name=f"layer.{number}", d_out=64, d_in=64) for number in range(15_000))
LEFT_OUT: Mapping[str, tuple[Any, str]] = {
    "another base model": (_shape(fingerprint="f" * 64), "holds another base model"),
    "a model of one weight more": (_shape(weights=_MANY[:3]), "holds another base model"),
    "a model of 15,000 weights": (_shape(weights=_MANY), "its model has 15000 weights"),
    "labels of 300,000 bytes": (_survey(labels=tuple("x" * 190 + str(n) for n in range(1600))), "labels, .* bytes"),
    "scores of other weights": (_curves({"up": (1.0,) * 4, "down": (1.0,) * 4}), "curves do not fit the model"),
    "scores of ranks that there are not": (
        _curves({"layer.0": (1.0,) * 400, "layer.1": (1.0,) * 400}),
        "expected 4 ranks, got 400",
    ),
    "scores of 10,000 weights": (
        _curves({f"layer.{number}": (1.0,) * 4 for number in range(10_000)}),
        "9998 curves do not fit",
    ),
}


def cases(yard: Yard) -> list[Case]:
    """All of these kinds; a profile of somebody else comes last, as a good one follows it."""
    found = list(_malformed(yard))
    found.append(Case("profile", "of another agent", partial(_others_profile, yard), r"\[wrong-sender\]"))
    found += [
        Case("report", f"joining with {name}", partial(_left_out, yard, f"eve-{number}", change), says)
        for number, (name, (change, says)) in enumerate(LEFT_OUT.items(), start=2)
    ]
    return found
