"""A session with a broker over one connection after another: the thread that decides.

Owns what must outlive a connection: subscriptions, publications not yet acknowledged, when to try again. It knows no
MQTT library: `mqtt.py` gives it a way to open a connection. The owner's calls and the connection's answers are signals
in one inbox; this thread alone takes them out, so nothing here needs a lock.
"""

import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal

from fedpipe_wire.link import (
    Accepted,
    Acknowledged,
    Came,
    FromLink,
    Granted,
    Link,
    Lost,
    OpenLink,
    Signal,
    Stop,
    Subscribe,
)
from fedpipe_wire.rivals import RIVAL, TAKEN_OVER, Rivals
from fedpipe_wire.sending import Publication, Sending
from fedpipe_wire.transport import Connected, Delivered, Disconnected, Event, Received

_FAILURE = 0x80
_NOT_AUTHORIZED = 0x87
_QUOTA_EXCEEDED = 0x97
_REMEDIES = {
    0x84: "the broker does not speak MQTT 5: use Mosquitto 2.0 or newer",
    0x85: "the broker does not accept this client identifier: check the agent's name",
    0x86: "check user name and password, or enrol this agent again",
    0x87: "this identity may not do that: enrol it, or check the broker's access list",
    0x8A: "this client is banned: ask the broker's owner",
    0x8C: "the broker wants another way of logging in: check its authentication settings",
}
"""CONNACK reasons (MQTT 5.0, 3.2.2.2) that do not pass by waiting, with what to do."""
Phase = Literal["down", "opening", "subscribing", "up", "leaving", "ended"]


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """How a session behaves; times in seconds.

    Attributes:
        keepalive_s: how long the connection may be silent before it is tested.
        session_expiry_s: how long the broker keeps subscriptions and queued messages of a session that is down.
        max_packet_bytes: refuse larger packets, besides what the broker says; None for the broker's word only.
        max_in_flight: publications sent and not acknowledged; the broker's Receive Maximum counts as well.
        receive_maximum: what the broker may send and have not acknowledged, and sends again after a cut.
        connect_s: how long the TCP connection may take.
        answer_s: how long a broker may take for CONNACK and SUBACK.
        backoff_min_s: wait before the second attempt to connect; doubles with each that does not last.
        backoff_max_s: longest wait between attempts.
        drain_s: how long `stop` waits for acknowledgements.
        retain_as_published: let what comes say whether its sender asked the broker to keep it, at once and not only
            where the broker kept it.
        max_takeovers: end for good after so many in a row, as `rivals.py` counts them.
    """

    keepalive_s: int = 15
    session_expiry_s: int = 3600
    max_packet_bytes: int | None = None
    max_in_flight: int = 20
    receive_maximum: int = 4
    connect_s: float = 5.0
    answer_s: float = 10.0
    backoff_min_s: float = 0.2
    backoff_max_s: float = 5.0
    drain_s: float = 2.0
    max_takeovers: int | None = None
    retain_as_published: bool = False


class Session:
    """The session's state; `run` is its thread's body.

    Args:
        where: the broker's `host:port`, for messages.
        open_link: opens the next connection.
        inbox: where the owner's and the connection's signals arrive.
        events: where the owner's events go.
        options: times and limits.

    Attributes:
        phase: how far the present connection is.
        limit_bytes: of a packet; None if nobody said.
        resent: publications that went out again, or will, because a connection was lost before their acknowledgement.
    """

    def __init__(
        self,
        where: str,
        open_link: OpenLink,
        inbox: SimpleQueue[Signal],
        events: SimpleQueue[Event],
        options: MqttOptions,
    ) -> None:
        self.phase: Phase = "down"
        self.resent = 0
        self.limit_bytes = options.max_packet_bytes
        self._where, self._open_link, self._options = where, open_link, options
        self._inbox, self._events = inbox, events
        self._number = 0
        self._link: Link | None = None
        self._patterns: list[str] = []
        self._granting: dict[int, tuple[str, ...]] = {}
        self._sending = Sending()
        self._held: list[Received] = []
        self._resumed = False
        self._due: float | None = 0.0
        self._backoff_s = options.backoff_min_s
        self._up_at = 0.0
        self._said, self._rivals = "", Rivals(options.max_takeovers)

    def run(self) -> None:
        """Work until stopped or finally refused."""
        stopping = False
        while self.phase != "ended":
            if self.phase == "down" and self._due is not None and time.monotonic() >= self._due:
                self._open()
            patience_s = None if self._due is None else max(0.0, self._due - time.monotonic())
            try:
                signal = self._inbox.get(timeout=patience_s)
            except Empty:
                self._overdue()
                continue
            if isinstance(signal, Stop):
                stopping = True
                self._due = time.monotonic() + self._options.drain_s
            else:
                self._handle(signal)
            if stopping and self.phase != "leaving" and (self.phase != "up" or not self._sending):
                self._leave()
        self._close_link()

    def _overdue(self) -> None:
        """The time of the present phase is up."""
        match self.phase:
            case "opening" | "subscribing":
                patience_s = self._options.answer_s
                self._fall(f"{self._where} did not answer as an MQTT 5 broker within {patience_s:g} s")
            case "up":
                self._leave()
            case "leaving":
                self.phase = "ended"
            case "down" | "ended":
                pass

    def _handle(self, signal: Subscribe | Publication | FromLink) -> None:
        match signal:
            case Publication():
                self._sending.add(signal)
                self._send()
            case Subscribe(pattern):
                if pattern not in self._patterns:
                    self._patterns.append(pattern)
                    if self.phase in {"subscribing", "up"}:
                        self._ask((pattern,))
            case _ if signal.link == self._number and self._link is not None:
                self._hear(signal)
            case _:
                pass  # an echo of a connection that is gone

    def _hear(self, signal: FromLink) -> None:
        match signal:
            case Came(_, message) if self.phase == "up":
                self._events.put(message)
            case Came(_, message):
                self._held.append(message)
            case Acknowledged():
                self._settle(signal)
            case Accepted():
                self._accepted(signal)
            case Granted(_, packet_id, codes):
                self._granted(self._granting.pop(packet_id, ()), codes)
            case Lost() if self.phase == "leaving":
                self.phase = "ended"
            case Lost():
                self._lost(signal.code, signal.reason)

    def _lost(self, code: int, reason: str) -> None:
        if code == TAKEN_OVER:
            reason = "another client logged in with this identity: give each agent its own"
        rival = self.phase == "up" and self._rivals.lost(code, time.monotonic())
        self._fall(f"connection to the broker at {self._where} lost: {reason}{RIVAL if rival else ''}", final=rival)

    # --- connecting -----------------------------------------------------------------------------

    def _open(self) -> None:
        self._number += 1
        try:
            self._link = self._open_link(self._number, self._inbox)
        except (OSError, ValueError) as error:
            self._rivals.refused()
            self._fall(f"cannot reach the broker at {self._where}: {error}")
            return
        self.phase, self._due = "opening", time.monotonic() + self._options.answer_s

    def _accepted(self, answer: Accepted) -> None:
        if answer.code >= _FAILURE:
            remedy = _REMEDIES.get(answer.code)
            reason = f"the broker at {self._where} refused the login: {answer.reason}"
            self._fall(f"{reason}; {remedy}" if remedy else reason, final=remedy is not None)
            return
        if answer.lacking:
            lacking = ", ".join(answer.lacking)
            reason = f"the broker at {self._where} does not offer {lacking}: use Mosquitto 2.0 or newer"
            self._fall(reason, final=True)
            return
        limits = (self._options.max_packet_bytes, answer.max_packet_bytes)
        self.limit_bytes = min((limit for limit in limits if limit is not None), default=None)
        most = self._options.max_in_flight
        self._sending.limit = min(most, answer.receive_maximum or most)
        self._resumed = answer.resumed
        if not answer.resumed:
            self._rivals.refused()
        self.phase = "subscribing"
        if self._patterns:
            self._ask(tuple(self._patterns))
        else:
            self._rise()

    def _ask(self, patterns: tuple[str, ...]) -> None:
        packet_id = None if self._link is None else self._link.subscribe(patterns)
        if packet_id is not None:
            self._granting[packet_id] = patterns

    def _granted(self, patterns: tuple[str, ...], codes: tuple[int, ...]) -> None:
        refused = [name for name, code in zip(patterns, codes, strict=False) if code >= _FAILURE]
        if refused:
            reason = f"the broker at {self._where} refused the subscription to {refused[0]!r}"
            self._fall(f"{reason}; {_REMEDIES[_NOT_AUTHORIZED]}", final=True)
        elif self.phase == "subscribing" and not self._granting:
            self._rise()

    def _rise(self) -> None:
        self._due, self._said, self._up_at = None, "", time.monotonic()
        self.phase = "up"
        self._events.put(Connected(self._resumed))
        for message in self._held:
            self._events.put(message)
        self._held.clear()
        self._send()

    # --- publishing -----------------------------------------------------------------------------

    def _send(self) -> None:
        while self.phase == "up" and self._link is not None:
            publication = self._sending.next()
            packet_id = None if publication is None else self._link.publish(publication)
            if packet_id is None:
                return  # nothing to send, or the loss of the connection is about to be told
            self._sending.sent(packet_id)

    def _settle(self, answer: Acknowledged) -> None:
        if answer.code == _QUOTA_EXCEEDED:
            self._fall("the broker is over its quota for this session: raise its queue limits")
            return
        publication = self._sending.acknowledged(answer.packet_id)
        if publication is None:
            return
        if answer.code >= _FAILURE:
            remedy = _REMEDIES.get(answer.code, "see the broker's log")
            reason = f"refused a publication to {publication.topic!r}: {answer.reason}; {remedy}"
            self._fall(f"the broker at {self._where} {reason}", final=True)
            return
        self._events.put(Delivered(publication.handle))
        self._send()

    # --- ending ---------------------------------------------------------------------------------

    def _fall(self, reason: str, *, final: bool = False) -> None:
        """Give the connection up: say so once per reason, and try again later unless `final`."""
        was_up, now = self.phase == "up", time.monotonic()
        if was_up and now - self._up_at >= self._options.backoff_max_s:
            self._backoff_s = self._options.backoff_min_s  # two of one identity must not take turns in a tight loop
        self.phase = "ended" if final else "down"
        self._close_link()
        self.resent += self._sending.connection_lost()
        self._granting.clear()
        self._held.clear()
        self._due = now + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, self._options.backoff_max_s)
        if was_up or final or reason != self._said:
            self._events.put(Disconnected(reason, final))
        self._said = reason

    def _leave(self) -> None:
        if self.phase in {"down", "ended"} or self._link is None:
            self.phase = "ended"
            return
        self.phase, self._due = "leaving", time.monotonic() + 1.0
        self._link.goodbye()

    def _close_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
