"""What an honest agent with the echo as its trainer says: the good messages that bad ones are made of."""

import json
from typing import Any

from benchmarks.echo_trainer import HELD_OUT_EXAMPLES, TRAIN_EXAMPLES, echo_shape
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.device import BandwidthRate, DeviceProfile, Host, MatmulRate
from fedpipe_profiles.plan import StepMeasurement
from fedpipe_wire.agent_messages import AgentMessage, Scored, Survey, Trained
from fedpipe_wire.coordinator_messages import TrainTask
from fedpipe_wire.message_values import BlobRef, JobTerms
from fedpipe_wire.messages import encode

GIB = 1 << 30


def profile(agent: str, dataset: str) -> DeviceProfile:
    """Of a machine that is like the good agent's."""
    return DeviceProfile(
        agent=agent,
        host=Host(cpu="fixed", threads=1, total_bytes=64 * GIB, free_bytes=48 * GIB),
        supported_bits=(32,),
        matmul=(MatmulRate(dtype="float32", shape=(8, 8, 8), flops_per_s=1e12, repeats=3, relative_spread=0.0),),
        bandwidth=BandwidthRate(bytes_per_s=1e10, buffer_bytes=GIB, repeats=3, relative_spread=0.0),
        datasets=(dataset,),
    )


def survey(run: str, terms: JobTerms) -> Survey:
    """As the echo's."""
    return Survey(
        run=run,
        shape=echo_shape(terms.model),
        train_examples=TRAIN_EXAMPLES,
        held_out_examples=HELD_OUT_EXAMPLES,
        mean_tokens=float(terms.sequence_length),
    )


def scored(run: str, terms: JobTerms) -> Scored:
    """As the echo's."""
    curve = tuple(2.0 - 0.5**k for k in range(terms.max_rank))
    curves = {weight.name: curve for weight in echo_shape(terms.model).weights}
    contribution = Contribution(examples=TRAIN_EXAMPLES, curves=curves)
    return Scored(run=run, contribution=contribution, measurements=(measurement(terms),))


def measurement(terms: JobTerms) -> StepMeasurement:
    """Of steps that nobody took."""
    return StepMeasurement(
        bits=32,
        batch_size=terms.batch_sizes[0],
        sequence_length=terms.sequence_length,
        gradient_checkpointing=False,
        trainable_parameters=1000,
        side_parameters=0,
        steps=4,
        step_s=0.001,
        evaluation_example_s=0.0001,
        peak_bytes=1 << 20,
        context_bytes=1 << 20,
    )


def trained(task: TrainTask, ref: BlobRef, **changes: Any) -> Trained:
    """The offer of an update for a task."""
    fields: dict[str, Any] = {
        "run": task.run,
        "round": task.round,
        "update": ref,
        "examples": task.plan.examples,
        "steps": 1,
        "train_loss": 1.0,
        "measurement": measurement(task.terms),
        "download_s": 0.1,
        "compute_s": 0.1,
    }
    return Trained(**fields | changes)


def plain(message: AgentMessage) -> dict[str, Any]:
    """A message as data that a case may change."""
    found: dict[str, Any] = json.loads(encode(message))
    return found
