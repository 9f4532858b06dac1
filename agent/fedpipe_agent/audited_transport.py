"""A session with the broker that publishes nothing without a line in the record of what leaves the silo.

Owns what such a line says. The daemon speaks through this alone, so nothing goes past it. A publication that is handed
over counts; one that a lost connection makes the session send again is not told twice.
"""

import hashlib
import json
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from fedpipe_agent.audit import AuditRecord
from fedpipe_agent.mouth import PROBE_BLOB
from fedpipe_wire.transport import Event, Transport, Will


class AuditedTransport:
    """The `Transport` that it is given, with a record. Used by the daemon's thread only."""

    def __init__(self, transport: Transport, record: AuditRecord) -> None:
        self._transport, self._record = transport, record

    @property
    def events(self) -> SimpleQueue[Event]:
        """Where every event arrives, in order."""
        return self._transport.events

    @property
    def connected(self) -> bool:
        """Whether the session is up at this moment."""
        return self._transport.connected

    def start(self) -> None:
        """Begin to connect."""
        self._transport.start()

    def subscribe(self, pattern: str) -> None:
        """Ask for a topic pattern, now and after every reconnect."""
        self._transport.subscribe(pattern)

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: Mapping[str, str] | None = None
    ) -> int | None:
        """Hand a publication to the broker; if it was taken, it is recorded. Raises as the transport does."""
        handle = self._transport.publish(topic, payload, retain=retain, properties=properties)
        if handle is not None:
            self._add(topic, payload, properties)
        return handle

    def stop(self) -> None:
        """Say goodbye and free everything."""
        self._transport.stop()

    def will_given(self, will: Will) -> None:
        """A connection came up: the broker was given this will with it."""
        self._add(will.topic, will.payload, will.properties, kind="will")

    def _add(self, topic: str, payload: bytes, properties: Mapping[str, str] | None, kind: str | None = None) -> None:
        found, what = _described(topic, payload, properties)
        sha256 = hashlib.sha256(payload).hexdigest()
        self._record.add(kind or found, topic=topic, bytes=len(payload), sha256=sha256, **what)


def _described(topic: str, payload: bytes, properties: Mapping[str, str] | None) -> tuple[str, dict[str, Any]]:
    """Kind of a publication, and what names it: a message's id and content, or a chunk's blob and number."""
    if properties and "id" in properties:
        said = json.loads(payload)
        what = {"id": properties["id"], "n": int(properties["n"]), "type": said["type"]}
        if "run" in said:
            what["run"] = said["run"]
        if isinstance(said.get("update"), dict):
            what["blob"] = said["update"]["sha256"]
        return "message", what
    blob, chunk = topic.split("/")[-2:]
    return "probe" if blob == PROBE_BLOB else "chunk", {"blob": blob, "chunk": int(chunk)}
