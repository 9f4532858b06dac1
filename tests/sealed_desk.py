"""The coordinator's side of real agents over TLS: a `Desk` that seals what it says and judges all that it hears.

It decides who is let in as the coordinator does.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agent_desk import AGENT, TOPICS, Desk
from sealed_support import FEDERATION, SealedFederation, TlsBroker

from fedpipe_agent.key_folder import CURRENT
from fedpipe_coordinator.registry import LetIn, Registry, Turned
from fedpipe_wire.agent_messages import AgentMessage, Presence
from fedpipe_wire.certificates import load_certificate, signing_key_of
from fedpipe_wire.coordinator_messages import TurnedAway, Welcome
from fedpipe_wire.envelope import Envelope
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.sealing import Inspector, Keys, SealError, key_id
from fedpipe_wire.transport import Received

LIMIT_S = 60.0


@dataclass
class SealedDesk(Desk):
    """`keys`: whose seals count; `outsides` of what was heard, in its order; `refused`: what was not let in."""

    keys: dict[str, Keys] = field(default_factory=dict)
    outsides: list[Envelope] = field(default_factory=list)
    refused: list[SealError] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inspector = Inspector(self.keys.get, {}, frozenset({"presence", "profile"}))
        self.registry = Registry({})

    def knows(self, state: Path) -> str:
        """Let the present signing key of a state folder count, beside those before; its id."""
        pem = (state / CURRENT / "signing.crt").read_text()
        key = signing_key_of(load_certificate(pem, "signing"))
        self.keys[AGENT] = {**self.keys.get(AGENT, {}), key_id(key): key}
        return key_id(key)

    def _received(self, event: Received) -> None:
        address = TOPICS.parse(event.topic)
        if address.channel != "blob":
            try:
                self.outsides.append(self.inspector.inspect(address.agent or "", event))
            except SealError as error:
                self.refused.append(error)
                return
        super()._received(event)

    def _message(self, message: AgentMessage) -> None:
        if not isinstance(message, Presence):
            super()._message(message)
            return
        self.presences.append(message)
        match self.registry.presence(AGENT, message):
            case LetIn(session):
                self.say(Welcome(session=session))
            case Turned(session, reason):
                self.say(TurnedAway(session=session, reason=reason))
            case _:
                pass


@contextlib.contextmanager
def sealed_desk(folder: Path, federation: SealedFederation, broker: TlsBroker) -> Iterator[SealedDesk]:
    """A desk that is connected."""
    context = broker.coordinator_context()
    options = MqttOptions(backoff_min_s=0.05, backoff_max_s=0.2)
    transport = MqttTransport(broker.host, broker.port, "desk", tls=lambda: context, options=options)
    desk = SealedDesk(transport, folder, time.monotonic, rounds=0, sealer=federation.sealer())
    try:
        yield desk
    finally:
        desk.receiver.close()
        transport.stop()


@dataclass
class AgentProcess:
    """`fedpipe-agent run`, and where it writes."""

    config: Path
    process: "subprocess.Popen[bytes]"

    @property
    def state(self) -> Path:
        return self.config.parent / "state"

    @property
    def said(self) -> str:
        return (self.config.parent / "log").read_text()

    def until(self, desk: Desk, what: str, condition: Callable[[], object]) -> None:
        """Let the desk work until something holds."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            if not desk.pump():
                time.sleep(0.01)
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.fail(f"{what}: not within {LIMIT_S} s, or the agent ended:\n{self.said[-4000:]}")


@contextlib.contextmanager
def agent_process(folder: Path, settings: str = "", inside: Sequence[str] = ()) -> Iterator[AgentProcess]:
    """A running agent whose state folder has joined already; `inside` stands before its command."""
    config = folder / "agent.toml"
    config.write_text(f'name = "{AGENT}"\nfederation = "{FEDERATION}"\n{settings}')
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)  # what the agent does by itself is what counts
    with (folder / "log").open("ab") as log:
        command = [*inside, sys.executable, "-m", "fedpipe_agent", "run", "--config", str(config)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        yield AgentProcess(config, process)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
