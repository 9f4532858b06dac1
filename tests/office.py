"""A coordinator without its processes: the service on a broker in memory, with one agent's end of the wire in hand."""

import json
from pathlib import Path
from queue import Empty
from typing import Any

from fedpipe_coordinator.control import ControlRequest
from fedpipe_coordinator.exchange import Exchange
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.operations import handle
from fedpipe_coordinator.service import Service
from fedpipe_coordinator.store import SqliteStore
from fedpipe_wire import envelope
from fedpipe_wire.agent_messages import AgentMessage
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.memory import MemoryBroker, MemoryTransport
from fedpipe_wire.messages import AGENT_CHANNELS, SCHEMA_VERSION, Message, decode_from_coordinator, encode
from fedpipe_wire.sealing import COORDINATOR, RETAINED_BY_AGENTS, Inspector, Sealer
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Received

TOPICS = Topics("tests")


class Office:
    """A coordinator and its broker; restarting it keeps only what is on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.broker = folder, MemoryBroker()
        self.agent = MemoryTransport(self.broker, "agent")
        self.agent.subscribe("fedpipe/tests/agents/a/down/#")
        self.agent.start()
        self.counter = 0
        self.said: list[str] = []
        self.free_bytes = 1 << 40
        self.start()

    def start(self) -> None:
        self.store = SqliteStore(self.folder / "store.db")
        self.blobs = BlobStore(self.folder / "blobs", reserve_bytes=0, free_bytes=lambda _: self.free_bytes)
        transport = MemoryTransport(self.broker, "coordinator")
        sealer = Sealer(COORDINATOR, self.store.next_counter)
        inspector = Inspector(None, self.store.heard(), RETAINED_BY_AGENTS)
        exchange = Exchange(transport, TOPICS, self.blobs, sealer, inspector, self.said.append)
        self.service = Service(Home(self.folder), "tests", self.store, self.blobs, exchange, self.said.append)
        exchange.start()
        self.service.take_up()
        self.pump()

    def stop(self) -> None:
        self.service.close()
        self.store.close()

    def pump(self) -> None:
        """Handle what has come."""
        while True:
            try:
                event = self.service._queue.get_nowait()
            except Empty:
                return
            self.service._handle(event)

    def say(self, message: AgentMessage) -> None:
        self.counter += 1
        outside = envelope.Envelope(SCHEMA_VERSION, f"m{self.counter}", self.counter)
        topic = TOPICS.up("a", AGENT_CHANNELS[type(message)])
        retain = AGENT_CHANNELS[type(message)] in ("presence", "profile")
        self.agent.publish(topic, encode(message), retain=retain, properties=outside.properties())
        self.pump()

    def told(self) -> list[tuple[str, str]]:
        """What the agent was told since the last call: type and run."""
        found = []
        while not self.agent.events.empty():
            event = self.agent.events.get_nowait()
            if isinstance(event, Received):
                message = json.loads(event.payload)
                found.append((message["type"], message.get("run") or message["session"]))
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        question = ControlRequest(request)
        handle(self.service, question)
        answer = question.replies.get_nowait()
        assert answer is not None
        return answer

    def settle(self) -> None:
        """Handle what has come, and what the worker is about."""
        self.pump()
        while not self.service._actor.worker.idle:
            self.service._handle(self.service._queue.get(timeout=20))
            self.pump()
        self.service._write_out()

    def heard(self) -> list[Message]:
        """What the agent was told since the last call, whole."""
        found: list[Message] = []
        while not self.agent.events.empty():
            event = self.agent.events.get_nowait()
            if isinstance(event, Received):
                channel = event.topic.rpartition("/")[2]
                found.append(decode_from_coordinator(channel, event.payload, SCHEMA_VERSION))
        return found
