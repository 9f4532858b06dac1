"""How one blob crosses an unreliable path: two pure state machines and a pace.

Owns every decision about which chunk to send or ask for, and when. It moves no bytes and reads no clock:
the pumps (`blob_sender.py`, `blob_receiver.py`) do. Rules:

- The receiver drives. It asks for chunks it misses, a limited number at a time, so that neither the broker's queue nor
  its own memory ever holds more of a blob than that. It asks again after `idle_s` without a new chunk, sooner when the
  stream has passed what it waits for, and gives up after `silence_s` without one. A transfer that moves never ends.
- The sender sends each asked chunk once, lowest first. A chunk it has just sent is not sent again for a repeated
  request: requests that waited out a cut in a queue, or of many agents at once, cost nothing.
- A broadcast goes to all once. What one receiver misses of it after that goes to this one alone; what a second one
  misses at the same time goes to all again. Nobody is sent more than `repeats` times the whole.
"""

from dataclasses import dataclass, replace

from fedpipe_wire.blob_bits import all_bits, lowest_bits

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class BlobSettings:
    """How blobs travel; times in seconds.

    Attributes:
        chunk_bytes: size of the chunks that this side sends.
        window: publications of chunks not yet acknowledged by the broker, over all blobs of a sender.
        ask_chunks: chunks of one blob asked for and not yet received.
        idle_s: silence after which the receiver asks again.
        silence_s: silence after which the receiver gives up.
        uplink_bps: bits per second of payload that a sender may send; None is unlimited.
        max_bytes: largest blob taken.
        attempts: how often a blob whose bytes do not match its name is fetched before it is given up.
        repeats: how many times a blob's chunks one receiver is sent at its request, before it is refused.
    """

    chunk_bytes: int = 256 * 1024
    window: int = 4
    ask_chunks: int = 64
    idle_s: float = 10.0
    silence_s: float = 120.0
    uplink_bps: float | None = None
    max_bytes: int = 4 << 30
    attempts: int = 3
    repeats: int = 16

    @property
    def settle_s(self) -> float:
        """How long, at least, a chunk that was sent is not sent again."""
        return self.idle_s / 10

    @property
    def gap_s(self) -> float:
        """When to ask again for chunks that the stream has passed; longer than what the sender still ignores."""
        return self.idle_s / 4


# --- pace -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """A limit in bits per second, kept over any stretch up to one chunk and `LATE_S` of catching up.

    Whoever comes up to `LATE_S` after `free_at` was held up, and may catch up; whoever comes later was idle.
    """

    bps: float | None
    free_at: float = NEVER

    LATE_S = 0.1

    def spend(self, size: int, now: float) -> "Pace":
        """The pace after `size` bytes were sent at `now`: free again when a line of this speed would be."""
        if self.bps is None:
            return self
        begin = self.free_at if now - self.free_at <= self.LATE_S else now
        return replace(self, free_at=begin + 8 * size / self.bps)


# --- sender -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sending:
    """What a sender knows of one blob; sets of chunks as bits.

    `recent` and `older` are the chunks acknowledged by the broker since `turned_at` and in the period before it.
    """

    chunks: int
    todo: int = 0
    in_flight: int = 0
    recent: int = 0
    older: int = 0
    turned_at: float = NEVER

    @property
    def open(self) -> int:
        """The chunks that are on their way or were a moment ago: who asks for them gets them anyhow."""
        return self.todo | self.in_flight | self.recent | self.older


@dataclass(frozen=True, slots=True)
class Asked:
    """A receiver misses these chunks."""

    bits: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """These chunks need not be sent to this receiver any more."""

    bits: int


@dataclass(frozen=True, slots=True)
class SlotFree:
    """One more publication may be in flight."""


@dataclass(frozen=True, slots=True)
class NotTaken:
    """The session went down before it took the chunk."""

    index: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The broker has the chunk."""

    index: int


@dataclass(frozen=True, slots=True)
class StateLost:
    """The broker came back without what it had: what it acknowledged may never arrive."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The session is up again, and with it come the requests that waited: the time without it does not count."""


@dataclass(frozen=True, slots=True)
class Send:
    """Publish this chunk."""

    index: int


SenderEvent = Asked | Dropped | SlotFree | NotTaken | Acknowledged | StateLost | Resumed


def step_sender(
    state: Sending, event: SenderEvent, now: float, settings: BlobSettings
) -> tuple[Sending, tuple[Send, ...]]:
    """The sender's next state, and the chunks to publish now."""
    if not isinstance(event, Resumed):
        state = _turn(state, now, settings.settle_s)
    match event:
        case Asked(bits):
            news = bits & ~(state.in_flight | state.recent | state.older)
            return replace(state, todo=state.todo | news), ()
        case Dropped(bits):
            return replace(state, todo=state.todo & ~bits), ()
        case SlotFree():
            lowest = state.todo & -state.todo
            if not lowest:
                return state, ()
            state = replace(state, todo=state.todo ^ lowest, in_flight=state.in_flight | lowest)
            return state, (Send(lowest.bit_length() - 1),)
        case NotTaken(index):
            bit = 1 << index
            return replace(state, todo=state.todo | bit, in_flight=state.in_flight & ~bit), ()
        case Acknowledged(index):
            bit = 1 << index
            return replace(state, recent=state.recent | bit, in_flight=state.in_flight & ~bit), ()
        case StateLost():
            return replace(state, recent=0, older=0), ()
        case Resumed():
            return replace(state, turned_at=now), ()


def _turn(state: Sending, now: float, settle_s: float) -> Sending:
    if now - state.turned_at < settle_s:
        return state
    older = state.recent if now - state.turned_at < 2 * settle_s else 0
    return replace(state, older=older, recent=0, turned_at=now)


# --- receiver ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receiving:
    """What a receiver knows of one blob; sets of chunks as bits, times on the owner's clock in seconds.

    `awaited` are the missing chunks that were asked for or promised; `moved_at` is when the last new chunk came.
    """

    chunks: int
    missing: int
    awaited: int
    moved_at: float
    ask_at: float

    def wake_at(self, settings: BlobSettings) -> float:
        """When time alone changes something."""
        return min(self.ask_at, self.moved_at + settings.silence_s)


@dataclass(frozen=True, slots=True)
class Came:
    """A chunk was received and kept."""

    index: int


@dataclass(frozen=True, slots=True)
class Woke:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Tell the sender that these chunks are missing."""

    bits: int


@dataclass(frozen=True, slots=True)
class Complete:
    """All chunks are here: verify them."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing came for `silence_s`."""


ReceiverEvent = Came | Woke | StateLost
ReceiverAction = Ask | Complete | GiveUp


def begin_receiving(
    chunks: int, have: int, now: float, settings: BlobSettings, *, pushed: bool = False
) -> tuple[Receiving, tuple[ReceiverAction, ...]]:
    """Begin, or go on with the chunks in `have`. `pushed`: the sender is sending all of them without being asked."""
    missing = all_bits(chunks) & ~have
    if not missing:
        return Receiving(chunks, 0, 0, now, now), (Complete(),)
    # The first request may meet a sender that has just sent this to others and will not hear it: repeat it soon.
    if pushed:
        return Receiving(chunks, missing, missing, now, now + settings.gap_s), ()
    state, actions = _ask(Receiving(chunks, missing, 0, now, now), now, settings)
    return replace(state, ask_at=now + settings.gap_s), actions


def step_receiver(
    state: Receiving, event: ReceiverEvent, now: float, settings: BlobSettings
) -> tuple[Receiving, tuple[ReceiverAction, ...]]:
    """The receiver's next state, and what to do."""
    match event:
        case Came(index):
            return _came(state, index, now, settings)
        case Woke():
            if now - state.moved_at >= settings.silence_s:
                return state, (GiveUp(),)
            return _ask(state, now, settings) if now >= state.ask_at else (state, ())
        case StateLost():
            return _ask(state, now, settings)


def _came(
    state: Receiving, index: int, now: float, settings: BlobSettings
) -> tuple[Receiving, tuple[ReceiverAction, ...]]:
    bit = 1 << index
    if not state.missing & bit:
        return state, ()
    missing, awaited = state.missing & ~bit, state.awaited & ~bit
    # The sender sends the lowest first: when all that is awaited lies below, the stream has passed it.
    passed = awaited < bit
    state = Receiving(state.chunks, missing, awaited, now, now + (settings.gap_s if passed else settings.idle_s))
    if not missing:
        return state, (Complete(),)
    room = settings.ask_chunks - awaited.bit_count()
    more = missing & ~awaited
    if not more or room * 2 < settings.ask_chunks:
        return state, ()
    asked = lowest_bits(more, room)
    return replace(state, awaited=awaited | asked, ask_at=now + settings.idle_s), (Ask(asked),)


def _ask(state: Receiving, now: float, settings: BlobSettings) -> tuple[Receiving, tuple[ReceiverAction, ...]]:
    asked = lowest_bits(state.missing, settings.ask_chunks)
    return replace(state, awaited=asked, ask_at=now + settings.idle_s), (Ask(asked),)
