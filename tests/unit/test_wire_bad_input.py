"""What a hostile or broken peer may put on the wire: each is answered with a clear error or ignored.

And a transfer that is under way meanwhile ends as if nothing had been.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from blob_simulation import AGENT, TOPICS, Simulation

from fedpipe_wire import envelope
from fedpipe_wire.agent_messages import BlobMissing
from fedpipe_wire.blob_bits import BlobError, all_bits, encode_bitmap
from fedpipe_wire.blob_pumps import BlobArrived
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import MessageError, decode_from_agent, decode_from_coordinator, encode
from fedpipe_wire.topics import MAX_CHUNKS, TopicError

SETTINGS = BlobSettings(chunk_bytes=100, ask_chunks=4)
SHA = "0123456789abcdef" * 4
CHUNKS = 20


@dataclass
class Table:
    """A transfer under way, half of it done, and both of its ends."""

    simulation: Simulation
    ref: BlobRef
    data: bytes
    began: int = field(init=False)

    def __post_init__(self) -> None:
        self.began = len(self.simulation.sent)

    def chunk(self, topic: str, payload: bytes) -> bool:
        """What the receiver's owner does with a packet on a blob topic; whether it was taken."""
        return self.simulation.receivers["coordinator"].on_chunk(TOPICS.parse(topic), payload)

    def expect(self, **changes: Any) -> None:
        """A reference to the blob under way, or to another, from the agent or from others."""
        ref = BlobRef.model_construct(**(self.ref.model_dump() | changes))
        self.simulation.receivers["coordinator"].expect(ref, "mallory")

    def request(self, bits: int = 1, count: int = CHUNKS, sha256: str | None = None) -> None:
        self.simulation.sender.on_request(sha256 or self.ref.sha256, encode_bitmap(bits, count), "mallory")


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    with closing(Simulation(tmp_path, SETTINGS)) as simulation:
        ref, data = simulation.blob(100 * CHUNKS)
        simulation.sender.offer(ref)
        simulation.receivers["coordinator"].expect(ref, AGENT)
        simulation.run(lambda: len(simulation.sent) >= CHUNKS // 2)
        table = Table(simulation, ref, data)
        yield table
        simulation.run()
        assert [type(outcome) for _, outcome in simulation.outcomes] == [BlobArrived]
        assert simulation.received("coordinator", ref) == data
        assert len(simulation.sent) == CHUNKS


def up(sha256: str, index: int | str, agent: str = AGENT) -> str:
    return f"fedpipe/hospitals/agents/{agent}/up/blob/{sha256}/{index}"


REFUSED: dict[str, tuple[Callable[[Table], object], type[Exception], str]] = {
    "a chunk beyond the last": (
        lambda t: t.chunk(up(t.ref.sha256, CHUNKS), bytes(100)),
        BlobError,
        "chunks 0 to 19, chunk 20 is outside",
    ),
    "a chunk number that no blob has": (
        lambda t: t.chunk(up(t.ref.sha256, MAX_CHUNKS), bytes(100)),
        TopicError,
        "not a number from 0 to",
    ),
    "a negative chunk": (lambda t: t.chunk(up(t.ref.sha256, -1), bytes(100)), TopicError, "chunk number '-1'"),
    "a chunk number of a million digits": (
        lambda t: t.chunk(up(t.ref.sha256, "9" * 1_000_000), b""),
        TopicError,
        "is not a number",
    ),
    "a chunk that is too long": (
        lambda t: t.chunk(up(t.ref.sha256, 15), bytes(101)),
        BlobError,
        "has 101 bytes, it must have 100",
    ),
    "a chunk that is too short": (lambda t: t.chunk(up(t.ref.sha256, 15), b""), BlobError, "has 0 bytes"),
    "a chunk of a name that is no sha256": (
        lambda t: t.chunk(up("../../etc/passwd"[:12], 0), b"x"),
        TopicError,
        "not one of federation",
    ),
    "a chunk of an upper-case name": (lambda t: t.chunk(up(SHA.upper(), 0), b"x"), TopicError, "64 lower-case"),
    "a chunk for another federation": (
        lambda t: t.chunk(up(t.ref.sha256, 15).replace("hospitals", "banks"), bytes(100)),
        TopicError,
        "not one of federation 'hospitals'",
    ),
    "a blob over the limit": (
        lambda t: t.expect(sha256=SHA, size=(4 << 30) + 1),
        BlobError,
        "has 4294967297 bytes, at most 4294967296 are taken",
    ),
    "a blob of more bytes than there are": (lambda t: t.expect(sha256=SHA, size=1 << 200), BlobError, "at most"),
    "a blob in too many chunks": (
        lambda t: t.expect(sha256=SHA, size=4 << 30, chunk_bytes=1),
        BlobError,
        "has 4294967296 chunks, at most 1048576",
    ),
    "chunks that fit no packet": (
        lambda t: t.expect(sha256=SHA, chunk_bytes=1_900_001),
        BlobError,
        "chunks of 1900001 bytes, at most 1900000",
    ),
    "another size for a blob under way": (
        lambda t: t.expect(size=1999),
        BlobError,
        "is said to have 1999 bytes in chunks of 100, another source says 2000",
    ),
    "other chunks for a blob under way": (
        lambda t: t.expect(chunk_bytes=50),
        BlobError,
        "2000 bytes in chunks of 50, another source says 2000 in chunks of 100",
    ),
    "a name that is a path": (lambda t: t.expect(sha256="../" * 20), BlobError, "64 lower-case hexadecimal digits"),
    "a request for a blob that is not offered": (
        lambda t: t.request(sha256=SHA),
        BlobError,
        "was asked for and is not offered",
    ),
    "a bitmap that is too short": (lambda t: t.request(count=8), BlobError, "bitmap of 1 bytes for 20 chunks"),
    "a bitmap that is too long": (
        lambda t: t.request(count=1_000_000),
        BlobError,
        "bitmap of 125000 bytes for 20 chunks, it must have exactly 3",
    ),
    "a bitmap of chunks beyond the last": (
        lambda t: t.request(bits=1 << 22, count=24),
        BlobError,
        "names chunk 22, the last of 20 chunks is 19",
    ),
    "a bitmap that is not base64": (
        lambda t: t.simulation.sender.on_request(t.ref.sha256, "?" * 4, "mallory"),
        BlobError,
        "bitmap is not base64",
    ),
    "a reference of a size below one": (
        lambda _: decode_from_agent("report", trained_with({"size": 0}), 1),
        MessageError,
        "malformed message",
    ),
    "a request with a name that is no sha256": (
        lambda _: decode_from_agent("report", b'{"type":"blob-missing","sha256":"x","bitmap":""}', 1),
        MessageError,
        "malformed message: blob-missing.sha256",
    ),
    "a request on the channel of others": (
        lambda _: decode_from_agent("presence", encode(BlobMissing(sha256=SHA, bitmap="")), 1),
        MessageError,
        "came on channel 'presence', it belongs on 'report'",
    ),
    "a message of a future schema": (
        lambda _: decode_from_agent("report", encode(BlobMissing(sha256=SHA, bitmap="")), 2),
        MessageError,
        "schema 2, this version reads schema 1",
    ),
    "a message over the limit": (
        lambda _: decode_from_coordinator("blob", b" " * 1_000_001, 1),
        MessageError,
        "message of 1000001 bytes, at most 1000000",
    ),
    "JSON without an end": (
        lambda _: decode_from_coordinator("blob", b'{"a":' * 100_000, 1),
        MessageError,
        "malformed message",
    ),
    "bytes that are no text": (
        lambda _: decode_from_agent("report", b"\xff\xfe\x00", 1),
        MessageError,
        "malformed message",
    ),
    "a packet without an envelope": (
        lambda _: envelope.parse({}),
        envelope.EnvelopeError,
        "packet without user property v, id, n",
    ),
    "a counter of ten thousand digits": (
        lambda _: envelope.parse({"v": "1", "id": "x", "n": "9" * 10_000}),
        envelope.EnvelopeError,
        "has 10000 characters, at most 512",
    ),
    "an envelope with a thousand properties": (
        lambda _: envelope.parse({str(number): "" for number in range(1000)}),
        envelope.EnvelopeError,
        "1000 user properties, at most 16",
    ),
}


def trained_with(update: dict[str, int]) -> bytes:
    """A trained message whose reference is changed."""
    ref = {"sha256": SHA, "size": 1, "chunk_bytes": 1} | update
    return f'{{"type":"trained","run":"r","round":1,"update":{ref!r}}}'.replace("'", '"').encode()


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_a_clear_error(table: Table, name: str) -> None:
    do, kind, words = REFUSED[name]
    with pytest.raises(kind) as caught:
        do(table)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


IGNORED: dict[str, Callable[[Table], object]] = {
    "a chunk of a blob that nobody expects": lambda t: t.chunk(up(SHA, 0), bytes(100)),
    "a chunk from another agent": lambda t: t.chunk(up(t.ref.sha256, 15, "mallory"), bytes(100)),
    "a chunk from the broadcast": lambda t: t.chunk(TOPICS.broadcast_chunk(t.ref.sha256, 15), bytes(100)),
    "a chunk on the agent's own way down": lambda t: t.chunk(TOPICS.down_chunk(AGENT, t.ref.sha256, 15), bytes(100)),
    "a chunk that is here already": lambda t: t.chunk(up(t.ref.sha256, 0), bytes(100)),
    "a request for nothing": lambda t: t.request(bits=0),
    "an acknowledgement that nobody waits for": lambda t: t.simulation.sender.on_delivered(10**9),
}


@pytest.mark.parametrize("name", IGNORED)
def test_it_is_ignored(table: Table, name: str) -> None:
    assert not IGNORED[name](table)
    assert not table.simulation.receivers["coordinator"].outcomes
    assert len(table.simulation.sent) == table.began


def test_a_refused_reference_leaves_nothing_on_the_disk(table: Table, tmp_path: Path) -> None:
    before = sorted(path.name for path in (tmp_path / "coordinator").iterdir())
    for size in (1 << 63, 1 << 200):
        with pytest.raises(BlobError):
            table.expect(sha256=SHA, size=size)
    assert sorted(path.name for path in (tmp_path / "coordinator").iterdir()) == before


# --- requests without an end ------------------------------------------------------------------------------------


def refuses(simulation: Simulation, ref: BlobRef, bitmap: str, asker: str) -> bool:
    try:
        simulation.sender.on_request(ref.sha256, bitmap, asker)
    except BlobError as error:
        return "at most 60 are sent at one's request" in str(error)
    return False


@pytest.mark.parametrize("names", [1, 50], ids=["by one agent", "by fifty"])
def test_endless_requests_for_the_same_chunks_are_answered_a_bounded_number_of_times(
    tmp_path: Path, names: int
) -> None:
    settings = BlobSettings(chunk_bytes=100, repeats=3, window=1000)
    with closing(Simulation(tmp_path, settings, agent=None, receivers=("honest",))) as simulation:
        ref, data = simulation.blob(100 * CHUNKS)
        simulation.receivers["honest"].expect(ref, None, pushed=True)
        simulation.sender.push(ref)
        rng, refused = random.Random(1), 0
        bitmap = encode_bitmap(all_bits(CHUNKS), CHUNKS)
        for _ in range(100 * names):
            simulation.clock.now += 5.0 / names
            refused += refuses(simulation, ref, bitmap, f"mallory{rng.randrange(names)}")
            simulation.run(for_s=0.0)
        simulation.run()
        assert simulation.received("honest", ref) == data
        assert len(simulation.sent) <= CHUNKS * (1 + 3 * names)
        assert refused > 10
        served = len(simulation.sent)
        simulation.receivers["honest"].cancel(ref.sha256, None)
        simulation.sender.on_request(ref.sha256, bitmap, "newcomer")  # one who asks for ever does not block others
        simulation.run()
        assert len(simulation.sent) == served + CHUNKS


def test_a_hundred_requests_at_once_cost_one_answer(tmp_path: Path) -> None:
    with closing(Simulation(tmp_path, SETTINGS)) as simulation:
        ref, _ = simulation.blob(100 * CHUNKS)
        simulation.sender.offer(ref)
        for _ in range(100):
            simulation.sender.on_request(ref.sha256, encode_bitmap(all_bits(CHUNKS), CHUNKS))
        simulation.run()
        assert len(simulation.sent) == CHUNKS


def test_invented_agents_do_not_fill_the_memory(table: Table) -> None:
    for number in range(6000):
        try:
            table.simulation.sender.on_request(table.ref.sha256, encode_bitmap(0, CHUNKS), f"agent{number}")
        except BlobError as error:
            assert "asked for by 4096 agents already" in str(error)  # noqa: PT017 -- the first ones are not refused
    assert len(table.simulation.sender._streams) <= 4097
