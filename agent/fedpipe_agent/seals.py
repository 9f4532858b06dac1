"""What this session's messages are sealed with, and the will that the broker keeps of it.

Owns that both follow the passport: with renewed keys, the next message and the next connection's will carry new seals.
"""

from collections.abc import Callable

from fedpipe_agent.identity import Identity
from fedpipe_agent.passport import Passport
from fedpipe_wire.sealing import Sealer
from fedpipe_wire.transport import Will


class Seals:
    """Used by the daemon's thread; `will` may be read by any.

    Args:
        identity: who speaks.
        next_counter: gives a number that was never used before.
        passport: has the key, where there is one.

    Attributes:
        passport: As given.
        sealer: Seals now.
        will: What the broker says when the session dies.

    Raises:
        StateFolderError: if there is no number for the will.
    """

    def __init__(self, identity: Identity, next_counter: Callable[[], int], passport: Passport) -> None:
        self._identity, self._next_counter = identity, next_counter
        self.passport = passport
        self.sealer, self.will = self._made()

    def renew(self) -> bool:
        """Seal with what the passport says now; whether that is new. Raises as the constructor."""
        renewed = self.passport.renewed()
        if renewed:
            self.sealer, self.will = self._made()
        return renewed

    def _made(self) -> tuple[Sealer, Will]:
        name, instance = self._identity.name, self._identity.instance
        sealer = Sealer(name, self._next_counter, self.passport.signing, instance)
        return sealer, self._identity.will(sealer)
