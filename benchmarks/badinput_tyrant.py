"""A hostile coordinator before a real agent: it holds the federation's keys, and says whatever a case wants it to.

Owns the federation without a coordinator (a broker, and one agent process with the echo as its trainer), the words of
the coordinator, and what the agent answered or said in its log.
"""

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import numpy as np

from benchmarks.badinput_cases import AcceptedError, CrashedError
from benchmarks.badinput_waiting import handle_until
from benchmarks.badinput_yard import MODEL, RANK, Log, Yard
from benchmarks.echo_trainer import echo_shape
from benchmarks.fleet import DATASET, FEDERATION, Fleet
from fedpipe_coordinator.broker.managed import ManagedBroker
from fedpipe_coordinator.federation import guard_of
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.credentials import Credentials, load_credentials
from fedpipe_profiles.plan import Plan, Prediction
from fedpipe_wire.agent_messages import AgentMessage, BlobMissing, Failed, Presence, Profile, Refused, Survey, Trained
from fedpipe_wire.blob_bits import decode_bitmap
from fedpipe_wire.coordinator_messages import CoordinatorMessage, SurveyTask, TrainTask, Welcome
from fedpipe_wire.message_values import BlobRef, JobTerms
from fedpipe_wire.messages import COORDINATOR_CHANNELS, decode_from_agent, encode
from fedpipe_wire.mqtt import MqttTransport
from fedpipe_wire.sealing import Sealer
from fedpipe_wire.tensor_header import encode_header
from fedpipe_wire.tensors import adapter_spec
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Connected, Disconnected, Event, Received

AGENT = "agent-1"
WAIT_S = 20.0
_FENCE = re.compile(r"\S+ refused: no dataset 'fence-\d+' here .*?\[datasets\.fence-\d+\]")
CHUNK_BYTES = 16 * 1024
SHAPE = echo_shape(MODEL)
TERMS = JobTerms(
    name="echo",
    model=MODEL,
    task="causal-lm",
    dataset=DATASET,
    seed=1,
    sequence_length=16,
    evaluation_examples=20,
    max_rank=RANK,
    batch_sizes=(4,),
)
Message = TypeVar("Message", bound=AgentMessage)


def adapter_bytes(value: float = 0.01) -> bytes:
    """A global adapter of one value."""
    spec = adapter_spec(SHAPE, [weight.name for weight in SHAPE.weights], RANK)
    header, _ = encode_header(spec, None)
    return header + np.full(sum(each.nbytes for each in spec.values()) // 4, value, np.float32).tobytes()


class Tyrant:
    """The coordinator's session. One thread uses it; nothing happens but while one of its methods runs."""

    def __init__(self, port: int, credentials: Credentials) -> None:
        self.topics = Topics(FEDERATION)
        self.sealer: Sealer = credentials.sealer(partial(next, itertools.count(time.time_ns() // 1000)))
        self.heard: list[AgentMessage] = []
        self.profile: Profile | None = None
        self.blobs: dict[str, tuple[BlobRef, bytes]] = {}
        self.chunk: Callable[[bytes], bytes] = lambda data: data
        self._numbers = itertools.count(1)
        self._connected = False
        self._transport = MqttTransport("127.0.0.1", port, "fedpipe-tyrant", tls=credentials.context)

    def start(self) -> None:
        """Connect, and wait for the agent."""
        self._transport.subscribe(self.topics.all_up())
        self._transport.start()
        self.until("a connection", lambda: self._connected)

    def stop(self) -> None:
        """Say goodbye."""
        self._transport.stop()

    def say(self, message: CoordinatorMessage) -> None:
        """Say something as an honest coordinator would."""
        self.send(COORDINATOR_CHANNELS[type(message)], encode(message))

    def send(self, channel: str, payload: bytes, *, retain: bool = False) -> None:
        """Send the agent any payload, sealed."""
        topic = self.topics.down(AGENT, channel)
        self.publish(topic, payload, self.sealer.seal(topic, payload).properties(), retain=retain)

    def publish(
        self, topic: str, payload: bytes, properties: dict[str, str] | None = None, *, retain: bool = False
    ) -> None:
        """Send anything."""
        if self._transport.publish(topic, payload, retain=retain, properties=properties) is None:
            raise CrashedError("the broker is away")

    def fence(self) -> None:
        """Return once the agent has handled all that was sent before: it refuses a task for data that it has not."""
        run = f"fence-{next(self._numbers)}"
        self.say(SurveyTask(run=run, terms=TERMS.model_copy(update={"dataset": run})))
        self.wait_for(Refused, lambda message: message.run == run)

    def wait_for(self, kind: type[Message], fits: Callable[[Message], bool], limit_s: float = WAIT_S) -> Message:
        """The first message of a kind that fits; those before it stay."""
        found: list[Message] = []

        def there() -> bool:
            found.extend(message for message in self.heard if isinstance(message, kind) and fits(message))
            return bool(found)

        self.until(f"a message {kind.__name__}", there, limit_s)
        return found[0]

    def until(self, what: str, condition: Callable[[], bool], limit_s: float = WAIT_S) -> None:
        """Handle what comes until something holds.

        Raises:
            CrashedError: if it does not in time.
        """
        handle_until(self._transport.events, self._handle, condition, f"the coordinator waits for {what}", limit_s)

    def _handle(self, event: Event) -> None:
        match event:
            case Connected():
                self._connected = True
            case Disconnected(reason):
                raise CrashedError(f"the broker is away: {reason}")
            case Received():
                self._received(event)
            case _:
                pass

    def _received(self, event: Received) -> None:
        address = self.topics.parse(event.topic)
        if address.sha256 is not None:
            return
        message = decode_from_agent(address.channel, event.payload, 1)
        match message:
            case Presence(state="online", session=session):
                self.say(Welcome(session=session))
            case Profile():
                self.profile = message
            case BlobMissing(sha256=sha256, bitmap=bitmap):
                self._serve(sha256, bitmap)
            case _:
                self.heard.append(message)

    def _serve(self, sha256: str, bitmap: str) -> None:
        if sha256 not in self.blobs:
            return
        ref, data = self.blobs[sha256]
        bits = decode_bitmap(bitmap, -(-ref.size // ref.chunk_bytes))
        for index in range(bits.bit_length()):
            if bits >> index & 1:
                part = data[index * ref.chunk_bytes : (index + 1) * ref.chunk_bytes]
                self.publish(self.topics.down_chunk(AGENT, sha256, index), self.chunk(part))

    # --- tasks ------------------------------------------------------------------------------------------------------

    def new_run(self) -> str:
        """A name that was not used before."""
        return f"case-{next(self._numbers)}"

    def lend(self, data: bytes, **changes: Any) -> BlobRef:
        """The reference to bytes that the agent may fetch."""
        ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data), chunk_bytes=CHUNK_BYTES)
        ref = ref.model_copy(update=changes)
        self.blobs[ref.sha256] = (ref, data)
        return ref

    def train_task(self, run: str, *, adapter: BlobRef | None = None, **changes: Any) -> TrainTask:
        """A good task, with some of its plan changed."""
        plan: dict[str, Any] = {
            "agent": AGENT,
            "round": 1,
            "bits": 32,
            "batch_size": 4,
            "gradient_checkpointing": False,
            "sequence_length": 16,
            "learning_rate": 1e-3,
            "seed": 1,
            "examples": 40,
            "deadline_s": 60.0,
            "scale": 1.0,
            "global_rank": RANK,
            "components": {weight.name: (0, 1) for weight in SHAPE.weights},
            "predicted": Prediction(peak_bytes=1 << 20, round_s=1.0, compute_s=1.0, up_bytes=1000, down_bytes=1000),
            "bound": "nothing",
            "reason": "everything fits",
        }
        ref = self.lend(adapter_bytes()) if adapter is None else adapter
        return TrainTask(run=run, round=1, terms=TERMS, adapter=ref, plan=Plan(**plan | changes))

    def answer(self, run: str, limit_s: float = WAIT_S) -> str:
        """What the agent says of a task that it must not do.

        Raises:
            AcceptedError: if it does it.
            CrashedError: if it says nothing.
        """
        found: list[AgentMessage] = []

        def there() -> bool:
            found.extend(m for m in self.heard if isinstance(m, Refused | Failed | Survey | Trained) and m.run == run)
            return bool(found)

        self.until(f"a word on {run}", there, limit_s)
        match found[0]:
            case Refused(reason=reason):
                return f"refused: {reason}"
            case Failed(kind=kind, message=message):
                return f"failed ({kind}): {message}"
            case other:
                raise AcceptedError(f"{other.type} came: {str(other)[:200]}")


class Court:
    """The agent, the tyrant and the agent's log."""

    def __init__(self, fleet: Fleet, tyrant: Tyrant) -> None:
        self.fleet, self.tyrant = fleet, tyrant
        self.log = Log(fleet.folder / "logs" / f"{AGENT}.log")

    def said_of(self, act: Callable[[], None]) -> str:
        """Do something, and tell what the agent's log says of it; "nothing" where it says nothing."""
        self.tyrant.fence()
        self.log.news()
        act()
        self.tyrant.fence()
        text = self.log.news()
        Yard.check_sane(text)
        return _FENCE.sub("", text).strip() or "nothing"

    def check_serving(self) -> None:
        """The agent does a good task from its beginning to its end.

        Raises:
            CrashedError: if it does not.
        """
        run = self.tyrant.new_run()
        self.tyrant.say(SurveyTask(run=run, terms=TERMS))
        self.tyrant.wait_for(Survey, lambda survey: survey.run == run)
        self.tyrant.say(self.tyrant.train_task(run))
        self.tyrant.wait_for(Trained, lambda trained: trained.run == run)
        if self.fleet.exit_code(AGENT) is not None:
            raise CrashedError(f"the agent ended: {self.fleet.last_words()}")


@contextmanager
def open_court(fleet: Fleet) -> Iterator[Court]:
    """Start the broker and the agent of a secure fleet whose coordinator does not run."""
    home = Home(fleet.home)
    credentials = load_credentials(home, FEDERATION, datetime.now(UTC))
    broker = ManagedBroker(home.broker, "127.0.0.1", fleet.port, guard=guard_of(home), context=credentials.context)
    broker.start()
    tyrant = Tyrant(fleet.port, credentials)
    try:
        tyrant.start()
        fleet.start_one(AGENT)
        tyrant.until("the agent's profile", lambda: tyrant.profile is not None, 60.0)
        court = Court(fleet, tyrant)
        court.check_serving()
        yield court
    finally:
        tyrant.stop()
        broker.stop()
