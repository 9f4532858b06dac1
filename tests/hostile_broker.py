"""The simulated federation with real packets, and a broker between its parts that does with them what it likes.

Owns the sealing and judging on both sides, as the coordinator and the agents do it, and every trick of the broker: it
delivers late, never, twice, in any order; it changes payloads, topics and properties, keeps what nobody asked it to
keep, moves messages between agents, and says things of its own. Transfers of blobs are not modelled here.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from run_support import RUN, name_of, ref, trained
from simulated_federation import NAMES, Silo, World

from fedpipe_agent import admission
from fedpipe_agent.admission import AdmissionEvent, LetIn, SayOnline
from fedpipe_agent.agent_events import AgentAction, Say, Welcomed
from fedpipe_coordinator import registry
from fedpipe_coordinator.runs.resume import resume
from fedpipe_coordinator.runs.run_events import AgentOffline, Heard, RunAction, Send
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_wire.agent_messages import AgentMessage, Failed, Presence, Progress
from fedpipe_wire.coordinator_messages import Ack, CoordinatorMessage, EndTask, TurnedAway, Welcome
from fedpipe_wire.messages import (
    AGENT_CHANNELS,
    COORDINATOR_CHANNELS,
    MessageError,
    decode_from_agent,
    decode_from_coordinator,
    encode,
)
from fedpipe_wire.replay import Heard as HeardCounters
from fedpipe_wire.sealing import (
    COORDINATOR,
    RETAINED_BY_AGENTS,
    RETAINED_BY_COORDINATOR,
    WILL,
    Inspector,
    Keys,
    Sealer,
    SealError,
    key_id,
)
from fedpipe_wire.topics import TopicError, Topics
from fedpipe_wire.transport import Received

TOPICS = Topics("tests")
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name[:1].encode() * 32) for name in (*NAMES, COORDINATOR)}
EVIL = Ed25519PrivateKey.from_private_bytes(b"?" * 32)


def keys_of(name: str) -> Keys | None:
    key = KEYS.get(name)
    return None if key is None else {key_id(key.public_key()): key.public_key()}


@dataclass
class Party:
    """One sender and receiver: what it signs with, and what it has heard, which outlives its process."""

    name: str
    sealed: bool
    counter: Callable[[], int] = field(default_factory=lambda: count(1).__next__)
    heard: dict[str, HeardCounters] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Also after a kill."""
        retained = RETAINED_BY_AGENTS if self.name == COORDINATOR else RETAINED_BY_COORDINATOR
        self.sealer = Sealer(self.name, self.counter, KEYS[self.name] if self.sealed else None)
        self.inspector = Inspector(keys_of if self.sealed else None, self.heard, retained)

    def seal(self, topic: str, payload: bytes, *, retain: bool = False, message_id: str | None = None) -> Received:
        outside = self.sealer.seal(topic, payload, retain=retain, message_id=message_id)
        return Received(topic, payload, retained=False, properties=outside.properties())

    def judge(self, sender: str, packet: Received) -> int:
        """The packet's schema; what was heard is kept before anything follows from it."""
        outside = self.inspector.inspect(sender, packet)
        self.heard |= self.inspector.dirty()
        return outside.schema


@dataclass
class HostileWorld(World):
    """A federation whose messages are packets, all of which pass through one broker.

    Attributes:
        sealed: Whether messages are signed.
        history: Every packet that was ever sent.
        kept: The last presence of each agent.
        refused: How often a packet was not listened to, by what was wrong with it.
    """

    sealed: bool = True
    history: list[Received] = field(default_factory=list)
    kept: dict[str, Received] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parties = {name: Party(name, self.sealed) for name in (*NAMES, COORDINATOR)}
        self.there: dict[str, registry.Entry] = {}

    # --- sending ------------------------------------------------------------------------------------------------

    def publish(self, packet: Received) -> None:
        self.history.append(packet)
        self.wire.append(("broker", packet))

    def take(self, actions: tuple[RunAction, ...]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.tell(action.agent, action.message)
        super().take(tuple(action for action in actions if not isinstance(action, Send)))

    def tell(self, agent: str, message: CoordinatorMessage) -> None:
        topic = TOPICS.down(agent, COORDINATOR_CHANNELS[type(message)])
        self.publish(self.parties[COORDINATOR].seal(topic, encode(message)))

    def say(self, silo: Silo, message: AgentMessage) -> None:
        channel = AGENT_CHANNELS[type(message)]
        topic, party = TOPICS.up(silo.name, channel), self.parties[silo.name]
        packet = party.seal(topic, encode(message), retain=channel in RETAINED_BY_AGENTS)
        if isinstance(message, Presence):
            self.kept[silo.name] = packet
        self.publish(packet)

    def do(self, silo: Silo, action: AgentAction) -> None:
        if isinstance(action, Say):
            if silo.admission.standing == "welcome" and not isinstance(action.message, Progress):
                self.say(silo, action.message)
            return
        super().do(silo, action)

    def will(self, silo: Silo) -> Received:
        """What an agent has left with the broker for its end."""
        message = Presence(state="offline", session=silo.session_name, instance=silo.name)
        topic = TOPICS.up(silo.name, "presence")
        return self.parties[silo.name].seal(topic, encode(message), retain=True, message_id=f"{WILL}{silo.session}")

    # --- receiving ----------------------------------------------------------------------------------------------

    def arrive(self, to: str, item: Any) -> None:
        if not isinstance(item, Received):
            super().arrive(to, item)
            return
        try:
            address = TOPICS.parse(item.topic)
            if address.direction == "up" and address.agent in self.silos:
                sender = address.agent
                schema = self.parties[COORDINATOR].judge(sender, item)
                self.at_coordinator(sender, decode_from_agent(address.channel, item.payload, schema))
            elif address.direction == "down" and address.agent in self.silos:
                silo = self.silos[address.agent]
                if silo.online:
                    schema = self.parties[silo.name].judge(COORDINATOR, item)
                    self.hears(silo, decode_from_coordinator(address.channel, item.payload, schema))
        except SealError as error:
            self.refused[error.fault] = self.refused.get(error.fault, 0) + 1
        except (TopicError, MessageError):
            self.refused["malformed"] = self.refused.get("malformed", 0) + 1

    def at_coordinator(self, agent: str, message: AgentMessage) -> None:
        if not isinstance(message, Presence):
            if getattr(message, "run", None) == self.state.run:
                self.coordinator(Heard(agent, cast("Any", message)))
            return
        self.there[agent], verdict = registry.judge(agent, self.there.get(agent, registry.Entry()), message)
        match verdict:
            case registry.LetIn(session, news):
                self.tell(agent, Welcome(session=session))
                self.coordinator(news)
            case registry.Turned(session, reason):
                self.tell(agent, TurnedAway(session=session, reason=reason))
            case AgentOffline():
                self.coordinator(verdict)
            case None:
                pass

    def hears(self, silo: Silo, message: CoordinatorMessage) -> None:
        if isinstance(message, Welcome | TurnedAway):
            self.admit(silo, message)
        else:
            silo.held.append(cast("Any", message))
            self.hear(silo)

    def admit(self, silo: Silo, event: AdmissionEvent) -> None:
        silo.admission, actions = admission.step(silo.admission, event, silo.drive.now)
        for action in actions:
            match action:
                case SayOnline():
                    self.say(silo, Presence(state="online", session=silo.session_name, instance=silo.name))
                case LetIn():
                    self.act(silo, silo.drive(Welcomed()))
                    self.hear(silo)
                case _:
                    raise AssertionError(f"{silo.name} is turned away")

    # --- restarts -----------------------------------------------------------------------------------------------

    def restarts(self) -> None:
        """The coordinator is killed and comes back; the broker has kept the agents' presences for it."""
        state = RunState.model_validate_json(self.state.model_dump_json())
        self.wire = [each for each in self.wire if isinstance(each[1], Received)]
        self.there = {}
        self.parties[COORDINATOR].start()
        self.run.state, actions = resume(state, self.run.now)
        self.run.actions.extend(actions)
        self.take(actions)
        self.wire += [("broker", replace(packet, retained=True)) for packet in self.kept.values()]

    def agent_restarts(self, silo: Silo) -> None:
        silo.restart()
        self.parties[silo.name].start()
        self.connects(silo)


# --- what the broker does ---------------------------------------------------------------------------------------


def play(world: HostileWorld, what: str, random: Random) -> Received | None:
    """Let one thing happen; what the broker brought, if it was one of its tricks."""
    if what in OTHERS:
        OTHERS[what](world, random)
        return None
    packet = TRICKS[what](world, random)
    if packet is not None:
        world.arrive("broker", packet)
    return packet


def _deliver(world: HostileWorld, random: Random) -> None:
    if world.wire:
        world.arrive(*world.wire.pop(random.randrange(len(world.wire))))


def _drop(world: HostileWorld, random: Random) -> Received | None:
    packets = [at for at, (_, item) in enumerate(world.wire) if isinstance(item, Received)]
    if packets:
        del world.wire[random.choice(packets)]
    return None


def _replay(world: HostileWorld, random: Random) -> Received | None:
    return random.choice(world.history) if world.history else None


def _keep(world: HostileWorld, random: Random) -> Received | None:
    return replace(random.choice(world.history), retained=True) if world.history else None


def _altered_payload(world: HostileWorld, random: Random) -> Received | None:
    """A digit becomes another: most such messages can be read, and say something else."""
    packet = random.choice(world.history[-10:]) if world.history else None
    digits = [] if packet is None else [at for at, byte in enumerate(packet.payload) if chr(byte).isdigit()]
    if packet is None or not digits:
        return None
    return replace(packet, payload=_put(packet.payload, random.choice(digits), str(random.randrange(10)).encode()))


def _put(data: bytes, at: int, other: bytes) -> bytes:
    return data[:at] + other + data[at + 1 :]


def _altered_property(world: HostileWorld, random: Random) -> Received | None:
    """A new counter, another id, another key: what a repeated message would need to be let in again."""
    if not world.history:
        return None
    packet = random.choice(world.history)
    name = random.choice(("v", "id", "n", "k", "s"))
    others = {"v": "2", "id": f"{WILL}x", "n": str(random.randrange(1, 10**6)), "k": key_id(EVIL.public_key())}
    value = others.get(name, base64.b64encode(random.randbytes(64)).decode())
    return replace(packet, properties={**packet.properties, name: value})


def _move(world: HostileWorld, random: Random) -> Received | None:
    """What one agent said, or was told, comes as another's."""
    if not world.history:
        return None
    packet = random.choice(world.history)
    levels = packet.topic.split("/")
    levels[3] = random.choice(NAMES)
    return replace(packet, topic="/".join(levels))


def _forge(world: HostileWorld, random: Random) -> Received | None:
    """The broker speaks: signed with a key of its own, by somebody else's name, or not at all."""
    name, round_ = random.choice(NAMES), max(1, world.state.round)
    sha256 = random.choice((name_of("evil", name, round_), trained(name, round_).update.sha256))
    offer = trained(name, round_).model_copy(update={"update": ref(sha256)})
    said: tuple[str, Any] = random.choice(
        (
            ("up", offer),
            ("up", Failed(run=RUN, round=round_, kind="out-of-memory", message="no")),
            ("up", Presence(state="offline", session="x", instance=name)),
            ("down", EndTask(run=RUN, reason="go home")),
            *(("down", _evil_ack(world, name, accepted=accepted)) for accepted in (True, False)),
        )
    )
    direction, message = said
    if direction == "up":
        topic, sender = TOPICS.up(name, AGENT_CHANNELS[type(message)]), name
    else:
        topic, sender = TOPICS.down(name, COORDINATOR_CHANNELS[type(message)]), COORDINATOR
    counter = random.randrange(10**6, 10**7)
    outside = Sealer(sender, lambda: counter, random.choice((EVIL, None))).seal(topic, encode(message))
    return Received(topic, encode(message), retained=False, properties=outside.properties())


def _evil_ack(world: HostileWorld, name: str, *, accepted: bool) -> Ack:
    """By which an agent would drop an update that nobody has."""
    outbox = world.silos[name].drive.state.memory.outbox
    sha256 = outbox[0].update.sha256 if outbox else "0" * 64
    return Ack(run=RUN, round=max(1, world.state.round), sha256=sha256, accepted=accepted)


def _will(world: HostileWorld, random: Random) -> Received | None:
    """The broker says that a living agent is gone, with the word that the agent left for its end."""
    return world.will(world.silos[random.choice(NAMES)])


TRICKS: dict[str, Callable[[HostileWorld, Random], Received | None]] = {
    "drop": _drop,
    "replay": _replay,
    "keep": _keep,
    "alter": _altered_payload,
    "alter property": _altered_property,
    "move": _move,
    "forge": _forge,
    "will": _will,
}
OTHERS: dict[str, Callable[[HostileWorld, Random], Any]] = {
    "deliver": _deliver,
    "work": lambda world, random: world.work(world.silos[random.choice(NAMES)]),
    "tick": lambda world, _: world.tick(0.5),
    "agent restarts": lambda world, random: world.agent_restarts(world.silos[random.choice(NAMES)]),
    "coordinator restarts": lambda world, _: world.restarts(),
}
