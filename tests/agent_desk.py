"""The coordinator's side of one agent's wire, by hand: it lets the agent in, gives it tasks, takes its updates.

Owns a store of its own and what it has heard; it decides as little as it can. `write_answers` makes the stand-in of the
trainer answer.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import Empty
from typing import Any

from agent_support import replies, train_task
from run_support import LABELS, plan

from fedpipe_agent.trainer_protocol import EvaluateRequest, OpenRequest, ScoreRequest, SurveyRequest, TrainRequest
from fedpipe_data.source import DatasetSource
from fedpipe_wire import envelope
from fedpipe_wire.agent_messages import AgentMessage, BlobMissing, Presence, Trained
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_outcomes import BlobArrived, BlobWanted
from fedpipe_wire.blob_receiver import BlobReceiver
from fedpipe_wire.blob_sender import BlobSender
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.coordinator_messages import Ack, BlobRequest, CoordinatorMessage, TrainTask, TurnedAway, Welcome
from fedpipe_wire.messages import COORDINATOR_CHANNELS, decode_from_agent, encode
from fedpipe_wire.sealing import COORDINATOR, Sealer
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Connected, Delivered, Event, Received, Transport

AGENT = "a"
TOPICS = Topics("f")
ADAPTER_BYTES = bytes(range(256)) * 2400
"""Three chunks."""


def write_answers(path: Path) -> Path:
    """What the stand-in of the trainer says to each request."""
    task = train_task()
    open_ = OpenRequest(
        run="r",
        terms=task.terms,
        model="m",
        dataset=DatasetSource(path=path),
        device="cpu",
        supported_bits=(32,),
        memory_limit_bytes=1,
        threads=1,
    )
    train: dict[str, Any] = {"labels": LABELS, "plan": plan(AGENT, 1), "adapter": path}
    requests = (
        open_,
        SurveyRequest(),
        ScoreRequest(labels=LABELS, batches=1, budget_s=1.0),
        EvaluateRequest(**train),
        TrainRequest(**train, update=path, budget_s=1.0),
    )
    path.write_text(
        json.dumps({each.op: [reply.model_dump(mode="json") for reply in replies(each)] for each in requests})
    )
    return path


@dataclass
class Desk:
    """One agent's coordinator. `rounds`: how many it asks for; `lets_in`: what it answers a presence, else Welcome."""

    transport: Transport
    folder: Path
    clock: Callable[[], float]
    rounds: int = 2
    lets_in: Callable[[Presence], Welcome | TurnedAway] = lambda presence: Welcome(session=presence.session)
    acknowledges: bool = True
    sealer: Sealer = field(default_factory=lambda: Sealer(COORDINATOR, count(1).__next__))
    taken: dict[int, str] = field(default_factory=dict)
    stored: Counter[str] = field(default_factory=Counter)
    offered: dict[str, Trained] = field(default_factory=dict)
    heard: list[AgentMessage] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)
    presences: list[Presence] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = BlobStore(self.folder, reserve_bytes=0)
        settings = BlobSettings()
        self.sender = BlobSender(self.transport, TOPICS, self.store, self.clock, settings=settings)
        self.receiver = BlobReceiver(self.store, self.clock, settings=settings)
        self.adapter = self.store.add_bytes(ADAPTER_BYTES)
        self.transport.subscribe(TOPICS.all_up())
        self.transport.start()
        self.sender.offer(self.adapter)
        self.unsaid: deque[CoordinatorMessage] = deque()

    def task(self, round_: int) -> TrainTask:
        task = train_task(round_)
        return task.model_copy(update={"adapter": self.adapter})

    @property
    def round(self) -> int:
        """The one that is asked for."""
        return len(self.taken) + 1

    @property
    def done(self) -> bool:
        return len(self.taken) >= self.rounds

    def say(self, message: CoordinatorMessage) -> None:
        topic, payload = TOPICS.down(AGENT, COORDINATOR_CHANNELS[type(message)]), encode(message)
        outside = self.sealer.seal(topic, payload)
        if self.transport.publish(topic, payload, properties=outside.properties()) is None:
            self.unsaid.append(message)

    def pump(self) -> bool:
        """Do all that there is to do; whether there was anything."""
        moved = False
        for event in self._events():
            moved = True
            match event:
                case Received():
                    self._received(event)
                case Delivered(handle):
                    self.sender.on_delivered(handle)
                case Connected(resumed):
                    self.sender.on_connected(resumed=resumed)
                    self.receiver.on_connected(resumed=resumed)
                    while self.unsaid and self.transport.connected:
                        self.say(self.unsaid.popleft())
                case _:
                    pass
            self._transfers()
        now = self.clock()
        self.sender.tick(now)
        self.receiver.tick(now)
        self._transfers()
        return moved

    def _events(self) -> Iterator[Event]:
        while True:
            try:
                yield self.transport.events.get_nowait()
            except Empty:
                return

    def _received(self, event: Received) -> None:
        address = TOPICS.parse(event.topic)
        if address.channel == "blob":
            self.receiver.on_chunk(address, event.payload)
            return
        outside = envelope.parse(event.properties)
        message = decode_from_agent(address.channel, event.payload, outside.schema)
        self.heard.append(message)
        if outside.counter:
            self.counters.append(outside.counter)
        self._message(message)

    def _message(self, message: AgentMessage) -> None:
        match message:
            case Presence():
                self.presences.append(message)
                if message.state == "online":
                    answer = self.lets_in(message)
                    self.say(answer)
                    if isinstance(answer, Welcome) and not self.done:
                        self.say(self.task(self.round))
            case BlobMissing(sha256=sha256, bitmap=bitmap):
                self.sender.on_request(sha256, bitmap)
            case Trained():
                self.offered[message.update.sha256] = message
                if self.store.has(message.update.sha256):
                    self._ack(message)
                else:
                    self.receiver.expect(message.update, AGENT)
            case _:
                pass

    def _transfers(self) -> None:
        for outcome in self.receiver.take():
            match outcome:
                case BlobWanted(_, sha256, bitmap):
                    self.say(BlobRequest(sha256=sha256, bitmap=bitmap))
                case BlobArrived(_, sha256, _):
                    self.stored[sha256] += 1
                    self._ack(self.offered[sha256])
                case failed:
                    raise AssertionError(failed)

    def _ack(self, trained: Trained) -> None:
        if not self.acknowledges:
            return
        first = trained.round not in self.taken
        self.taken[trained.round] = trained.update.sha256
        self.say(Ack(run=trained.run, round=trained.round, sha256=trained.update.sha256, accepted=True))
        if first and not self.done:
            self.say(self.task(self.round))
