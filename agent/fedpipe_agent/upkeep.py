"""What recurs beside an agent's work: renewed keys, what was heard, the record of what left, a connection that is away.

Owns the order in which these are kept up. Decides nothing about tasks.
"""

import contextlib
from collections.abc import Callable

from fedpipe_agent.audit import AuditRecord
from fedpipe_agent.audited_transport import AuditedTransport
from fedpipe_agent.ears import RETAINED, Chunk, Ears
from fedpipe_agent.errors import StateFolderError
from fedpipe_agent.identity import Identity
from fedpipe_agent.journal import Journal
from fedpipe_agent.memory import Memory
from fedpipe_agent.refusals import Refusals, RefusedPacketError
from fedpipe_agent.seals import Seals
from fedpipe_wire.coordinator_messages import CoordinatorMessage
from fedpipe_wire.moments import Moment
from fedpipe_wire.sealing import Inspector
from fedpipe_wire.transport import Received

_KEPT_CHARS = 200
REMIND_S = 300.0
"""When it is told first that the broker is still away; each time it takes twice as long, up to `REMIND_MOST_S`."""
REMIND_MOST_S = 3600.0


class Absence:
    """A connection that does not come up: its reason is told now and again. `clock` in monotonic seconds."""

    def __init__(self, clock: Callable[[], float], log: Callable[[str], None]) -> None:
        self._clock, self._log = clock, log
        self._reason = ""
        self._since = self._next = 0.0
        self._wait_s = REMIND_S

    def began(self, reason: str) -> None:
        """The connection is away, or away for another reason."""
        now = self._clock()
        if not self._reason:
            self._since, self._wait_s = now, REMIND_S
            self._next = now + REMIND_S
        self._reason = reason

    def ended(self) -> None:
        """It is up."""
        self._reason = ""

    def tick(self) -> None:
        """Time has passed."""
        now = self._clock()
        if not self._reason or now < self._next:
            return
        self._wait_s = min(2 * self._wait_s, REMIND_MOST_S)
        self._next = now + self._wait_s
        self._log(f"still no connection after {(now - self._since) / 60:.0f} min: {self._reason}")


class Upkeep:
    """Used by the daemon's thread only.

    Args:
        identity: who this is.
        journal: keeps what was heard.
        seals: what is sealed with, and whose seals count.
        record: takes a line of everything that leaves.
        transport: writes these lines.
        clock: monotonic seconds.
        log: takes one line for the owner.

    Raises:
        JournalError: if what was heard cannot be read.
    """

    def __init__(
        self,
        identity: Identity,
        journal: Journal,
        seals: Seals,
        record: AuditRecord,
        transport: AuditedTransport,
        clock: Callable[[], float],
        log: Callable[[str], None],
    ) -> None:
        self._journal, self._seals, self._record, self._transport = journal, seals, record, transport
        self._log = log
        self._inspector = Inspector(seals.passport.keys, journal.heard(), RETAINED)
        self._ears = Ears(identity, self._inspector)
        self._refusals = Refusals(clock, log, self._keep_refusal)
        self._absence = Absence(clock, log)

    def hear(self, event: Received) -> Chunk | CoordinatorMessage | None:
        """What a packet holds; None for one that is not acted on."""
        try:
            return self._ears.hear(event)
        except RefusedPacketError as error:
            self._refusals.add(error)
            return None

    def save(self, memory: Memory, moment: Moment) -> None:
        """Write down a memory, with what was heard up to it.

        Raises:
            JournalError: if it cannot be written.
        """
        self._journal.save(memory, moment, self._inspector.dirty())

    def tick(self, moment: Moment) -> bool:
        """Do what is due; whether this agent's seals are others than before.

        Raises:
            StateFolderError: if the journal or the record takes nothing any more.
        """
        renewed = self._seals.renew()
        heard = self._inspector.dirty()
        if heard:
            self._journal.save(None, moment, heard)
        self._refusals.tick()
        self._absence.tick()
        self._record.flush()
        return renewed

    def connected(self) -> None:
        """A connection came up."""
        self._log("connected to the broker")
        self._absence.ended()
        self._transport.will_given(self._seals.will)

    def lost(self, reason: str) -> None:
        """It went, or does not come up."""
        self._log(f"no connection to the broker: {reason}")
        self._absence.began(reason)

    def close(self, moment: Moment) -> None:
        """The process ends by itself. A full disk is told by what ends it."""
        with contextlib.suppress(StateFolderError):
            self.tick(moment)
            self._record.close()

    def _keep_refusal(self, topic: str, fault: str, size: int) -> None:
        self._record.add("refused", topic=topic[:_KEPT_CHARS], fault=fault, bytes=size)
