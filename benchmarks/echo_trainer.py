"""An echo in place of training: `python -m benchmarks.echo_trainer`, started by an agent as its trainer.

Speaks the trainer's protocol with numpy alone. Its model is only a shape, named by the job as
`echo/<weights>x<d_out>x<d_in>`; an update is a function of the plan and of the global adapter's bytes, so an update
that was lost, doubled or made of another adapter shows in the bytes of the last adapter.
"""

import hashlib
import re
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpipe_agent.train.__main__ import claim_stdout, die_with_parent
from fedpipe_agent.train.errors import ModelError
from fedpipe_agent.train.serve import serve
from fedpipe_agent.trainer_protocol import (
    EvaluatedReply,
    EvaluateRequest,
    Opened,
    OpenRequest,
    Reply,
    ScoredReply,
    ScoreRequest,
    Surveyed,
    SurveyRequest,
    TrainedReply,
    TrainRequest,
)
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.device import MIB
from fedpipe_profiles.model import ModelShape, WeightShape
from fedpipe_profiles.plan import Plan, StepMeasurement
from fedpipe_wire.message_values import Metrics
from fedpipe_wire.tensors import TensorFile, TensorWriter, a_name, b_name, update_spec

TRAIN_EXAMPLES = 120
HELD_OUT_EXAMPLES = 20
_PERIOD = 1009
"""A prime: a pattern of this length, laid over a matrix, repeats in no row or column."""
_MODEL = re.compile(r"echo/(\d+)x(\d+)x(\d+)")

Floats = NDArray[np.float32]


def model_name(weights: int, d_out: int, d_in: int) -> str:
    """What a job writes as `job.model` for this many weights of shape (d_out, d_in)."""
    return f"echo/{weights}x{d_out}x{d_in}"


def echo_shape(model: str) -> ModelShape:
    """The shape behind a model's name.

    Raises:
        ModelError: if the name is not one of `model_name`.
    """
    match = _MODEL.fullmatch(model)
    if match is None:
        raise ModelError(f"the echo's model is {model!r}: name it echo/<weights>x<d_out>x<d_in>, as echo/8x64x64")
    weights, d_out, d_in = (int(part) for part in match.groups())
    return ModelShape(
        model_type="llama",
        layers=1,
        hidden_size=d_in,
        intermediate_size=d_out,
        heads=1,
        vocabulary_size=1,
        weights=tuple(WeightShape(name=f"layer.{i}", d_out=d_out, d_in=d_in) for i in range(weights)),
        other_parameters=0,
        fingerprint=hashlib.sha256(model.encode()).hexdigest(),
    )


def write_echo(path: Path, shape: ModelShape, plan: Plan, adapter: Path) -> None:
    """Write the update: the plan's components of the global adapter, shrunk, and moved by a pattern of the plan's.

    Raises:
        TensorError: if the adapter does not hold the plan's components.
        OSError: if the disk refuses.
    """
    with TensorFile(adapter) as before, TensorWriter(path, update_spec(shape, plan)) as writer:
        for weight, indices in plan.components.items():
            chosen = list(indices)
            if chosen:
                writer.write(a_name(weight), _moved(before.read(a_name(weight))[chosen], plan, a_name(weight)))
                writer.write(b_name(weight), _moved(before.read(b_name(weight))[:, chosen], plan, b_name(weight)))


def _moved(values: Floats, plan: Plan, name: str) -> Floats:
    key = hashlib.sha256(f"{plan.seed}/{plan.round}/{plan.agent}/{name}".encode()).digest()
    pattern = np.random.Generator(np.random.SFC64(int.from_bytes(key, "little"))).random(_PERIOD, np.float32)
    moved: Floats = np.float32(0.875) * values + np.float32(0.01) * np.resize(pattern, values.shape)
    return moved


class Echo:
    """The work behind each request; the form of `fedpipe_agent.train.serve.Work`.

    Args:
        request: What to work on.
        say: Takes every reply.

    Raises:
        ModelError: if the job's model is not one of the echo's.
    """

    def __init__(self, request: OpenRequest, say: Callable[[Reply], None]) -> None:
        self._terms, self._say = request.terms, say
        self._bits = max(request.supported_bits)
        self._shape = echo_shape(request.terms.model)
        say(Opened(context_bytes=MIB))

    def survey(self, _request: SurveyRequest) -> None:
        """Say the shape and the counts."""
        self._say(
            Surveyed(
                shape=self._shape,
                labels=(),
                train_examples=TRAIN_EXAMPLES,
                held_out_examples=HELD_OUT_EXAMPLES,
                mean_tokens=float(self._terms.sequence_length),
            )
        )

    def score(self, _request: ScoreRequest) -> None:
        """Say a curve for every weight, the same for all."""
        curve = tuple(2.0 - 0.5**k for k in range(self._terms.max_rank))
        curves = {weight.name: curve for weight in self._shape.weights}
        contribution = Contribution(examples=TRAIN_EXAMPLES, curves=curves)
        self._say(ScoredReply(contribution=contribution, measurements=(self._measurement(),)))

    def evaluate(self, request: EvaluateRequest) -> None:
        """Say a loss that is a function of the adapter's bytes."""
        self._evaluate(request.adapter)

    def train(self, request: TrainRequest) -> None:
        """Say the loss of the adapter, write the update, and say so."""
        began = time.monotonic()
        self._evaluate(request.adapter)
        write_echo(request.update, self._shape, request.plan, request.adapter)
        plan = request.plan
        self._say(
            TrainedReply(
                examples=plan.examples,
                steps=-(-plan.examples // plan.batch_size),
                train_loss=1.0,
                measurement=self._measurement(),
                compute_s=time.monotonic() - began,
            )
        )

    def after_error(self, _error: BaseException) -> None:
        """Nothing is held between requests."""

    def is_out_of_memory(self, _error: BaseException) -> bool:
        """An echo does not run out of memory but by MemoryError, which the loop knows."""
        return False

    def peak_bytes(self) -> int:
        """Nothing is measured."""
        return 0

    def _evaluate(self, adapter: Path) -> None:
        digest = 0
        with adapter.open("rb") as file:
            while block := file.read(MIB):
                digest = zlib.crc32(block, digest)
        self._say(EvaluatedReply(metrics=Metrics(loss=1.0 + digest / 2**32, examples=HELD_OUT_EXAMPLES)))

    def _measurement(self) -> StepMeasurement:
        """Always the same, so that no plan depends on the speed of this machine."""
        return StepMeasurement(
            bits=self._bits,
            batch_size=self._terms.batch_sizes[0],
            sequence_length=self._terms.sequence_length,
            gradient_checkpointing=False,
            trainable_parameters=1000,
            side_parameters=0,
            steps=4,
            step_s=0.001,
            evaluation_example_s=0.0001,
            peak_bytes=MIB,
            context_bytes=MIB,
        )


def main() -> int:
    """Serve requests from stdin until its end."""
    die_with_parent()
    with open(claim_stdout(), "wb") as daemon:  # noqa: PTH123 - a descriptor

        def say(reply: Reply) -> None:
            daemon.write(reply.model_dump_json().encode() + b"\n")
            daemon.flush()

        serve(sys.stdin.buffer, say, Echo)
    return 0


if __name__ == "__main__":
    sys.exit(main())
