"""What the processes of a disturbed run said and did, written down where a kill cannot take it back.

Owns the lines' form, and the listener on the broker that writes down what really crossed it. Judging is
`chaos_checks.py`'s matter.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from queue import Empty
from typing import Any, Self

from fedpipe_wire.mqtt import MqttTransport
from fedpipe_wire.transport import Received


def said(topic: str, payload: bytes, properties: Mapping[str, str]) -> dict[str, Any] | None:
    """What a message says that a check needs; None for what is no message of FedPipe."""
    if "id" not in properties or "n" not in properties:
        return None
    words = topic.split("/")
    agent = words[3] if len(words) > 3 and words[2] == "agents" else ""
    sender = agent if len(words) > 4 and words[4] == "up" else "coordinator"
    data = json.loads(payload)
    line = {"sender": sender, "n": int(properties["n"]), "id": properties["id"], "type": data.get("type")}
    if data.get("type") == "ack":
        line |= {"agent": agent, **{key: data[key] for key in ("run", "round", "sha256", "accepted")}}
    return line


class Witness:
    """Inside of a process of the fleet: one line for every publication and every aggregation."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._write = os.write  # before it is wrapped

    def published(self, kind: str, payload: bytes, more: tuple[str, dict[str, str]]) -> None:
        """A message is about to be handed to the session."""
        del kind
        line = said(more[0], payload, more[1])
        if line is not None:
            self._note(line)

    def of_aggregation(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`aggregate_files` with a line written when it is done: from which adapter and updates, to which adapter."""

        def witnessed(global_path: Path, updates: Iterable[Any], out_path: Path, **more: Any) -> Any:
            given = list(updates)
            report = function(global_path, given, out_path, **more)
            self._note(
                {
                    "type": "aggregation",
                    "round": more.get("round_"),
                    "start": global_path.name,
                    "out": hashlib.sha256(out_path.read_bytes()).hexdigest(),
                    "updates": [[update.agent, update.path.name] for update in given],
                }
            )
            return report

        return witnessed

    def _note(self, line: dict[str, Any]) -> None:
        self._write(self._file, json.dumps(line).encode() + b"\n")


class Listener:
    """Outside: a client of the broker that hears all messages of a federation. Use it in a `with` block."""

    def __init__(self, port: int) -> None:
        self._session = MqttTransport("127.0.0.1", port, "chaos-listener")
        self._session.subscribe("fedpipe/#")

    def __enter__(self) -> Self:
        self._session.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._session.stop()

    def heard(self) -> list[dict[str, Any]]:
        """What came since the last call."""
        lines: list[dict[str, Any]] = []
        while True:
            try:
                event = self._session.events.get_nowait()
            except Empty:
                return lines
            if isinstance(event, Received) and not event.retained:
                line = said(event.topic, event.payload, event.properties)
                if line is not None:
                    lines.append(line)
