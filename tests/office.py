"""A coordinator without its processes: the service on a broker in memory, with one agent's end of the wire in hand."""

import json
from pathlib import Path
from queue import Empty
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpipe_coordinator.control import ControlRequest
from fedpipe_coordinator.exchange import Exchange
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.operations import handle
from fedpipe_coordinator.service import Service
from fedpipe_coordinator.store import SqliteStore
from fedpipe_wire.agent_messages import AgentMessage
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.memory import MemoryBroker, MemoryTransport
from fedpipe_wire.messages import AGENT_CHANNELS, SCHEMA_VERSION, Message, decode_from_coordinator, encode
from fedpipe_wire.sealing import COORDINATOR, RETAINED_BY_AGENTS, Inspector, Keys, Sealer, key_id
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Received, Transport

TOPICS = Topics("tests")


AGENT_KEY = Ed25519PrivateKey.from_private_bytes(b"agent a, for tests, 32 bytes....")
COORDINATOR_KEY = Ed25519PrivateKey.from_private_bytes(b"coordinator, for tests, 32 bytes")


def keys_of(name: str) -> Keys | None:
    """Who is enrolled at a sealed office."""
    public = AGENT_KEY.public_key()
    return {key_id(public): public} if name == "a" else None


class Office:
    """A coordinator and its broker; restarting it keeps only what is on disk. `sealed`: all messages are signed."""

    def __init__(self, folder: Path, *, sealed: bool = False) -> None:
        self.folder, self.broker, self.sealed = folder, MemoryBroker(), sealed
        self.agent = MemoryTransport(self.broker, "agent")
        self.agent.subscribe("fedpipe/tests/agents/a/down/#")
        self.agent.start()
        self.counter = 0
        self.sealer = Sealer("a", self._count, AGENT_KEY if sealed else None)
        self.said: list[str] = []
        self.free_bytes = 1 << 40
        self.start()

    def start(self) -> None:
        self.store = SqliteStore(Home(self.folder).store)
        self.blobs = BlobStore(self.folder / "blobs", reserve_bytes=0, free_bytes=lambda _: self.free_bytes)
        transport = self.session()
        sealer = Sealer(COORDINATOR, self.store.next_counter, COORDINATOR_KEY if self.sealed else None)
        inspector = Inspector(keys_of if self.sealed else None, self.store.heard(), RETAINED_BY_AGENTS)
        exchange = Exchange(transport, TOPICS, self.blobs, sealer, inspector, self.said.append)
        self.service = Service(Home(self.folder), "tests", self.store, self.blobs, exchange, self.said.append)
        exchange.start()
        self.service.take_up()
        self.pump()

    def session(self) -> Transport:
        """The coordinator's, with its broker."""
        return MemoryTransport(self.broker, "coordinator")

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
        packet = self.packet(message)
        retain = AGENT_CHANNELS[type(message)] in RETAINED_BY_AGENTS
        self.agent.publish(packet.topic, packet.payload, retain=retain, properties=packet.properties)
        self.pump()

    def packet(self, message: AgentMessage) -> Received:
        """A message as the agent sends it, not sent yet."""
        topic, payload = TOPICS.up("a", AGENT_CHANNELS[type(message)]), encode(message)
        retain = AGENT_CHANNELS[type(message)] in RETAINED_BY_AGENTS
        outside = self.sealer.seal(topic, payload, retain=retain, message_id=f"m{self.counter + 1}")
        return Received(topic, payload, retained=False, properties=outside.properties())

    def bring(self, packet: Received) -> None:
        """The broker delivers this, whatever it is."""
        self.service._handle(packet)
        self.pump()

    def _count(self) -> int:
        self.counter += 1
        return self.counter

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
