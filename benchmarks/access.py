"""Who can write and read which topic of a managed broker, tried with the real `mosquitto_pub` and `mosquitto_sub`.

    python -m benchmarks.access [--json FILE] [--seed N]

A federation is made in a temporary folder with agents north and south, and its broker is started. Each client tries
every topic: the coordinator, north, another agent (south), and five who all pretend to be north: without a certificate,
with one that ran out, with one that was revoked, with one of a foreign authority that calls itself the same, and with
north's certificate for signing. One more speaks without TLS. A cell holds `r` where a message of the topic's rightful
writer came to it, and `w` where what it wrote came to the topic's rightful reader, or, where a topic has none, where
the broker took it; `-` where not. `no login` is for who could not even say hello. Below the table stand those whose
message the broker kept, of all who asked it to keep one. The outcome depends on no chance; `--seed` is taken for the
sake of uniformity and names the messages.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.access_clients import Client, Listener, publish, publish_all
from fedpipe_coordinator.broker.managed import ManagedBroker, free_port
from fedpipe_coordinator.federation import Office, create_federation, guard_of, open_office
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.security.authority import Authority, new_authority, new_login_key, new_signing_key
from fedpipe_coordinator.security.credentials import load_credentials
from fedpipe_coordinator.security.enrolling import enrol
from fedpipe_wire.certificates import private_pem, to_pem
from fedpipe_wire.enrolment import make_request

FEDERATION = "access"
_ROOT = f"fedpipe/{FEDERATION}"
_UP, _DOWN, _ALL = f"{_ROOT}/agents/north/up", f"{_ROOT}/agents/north/down", f"{_ROOT}/broadcast"
_SHA = "ab" * 32
TOPICS: dict[str, tuple[str | None, str | None]] = {
    **{f"{_UP}/{channel}": ("north", "coordinator") for channel in ("presence", "profile", "contribution", "report")},
    f"{_UP}/blob/{_SHA}/0": ("north", "coordinator"),
    f"{_UP}/anything": (None, "coordinator"),
    f"{_DOWN}/task": ("coordinator", "north"),
    f"{_DOWN}/blob/{_SHA}/0": ("coordinator", "north"),
    f"{_ALL}/run": ("coordinator", "north"),
    f"{_ALL}/blob/{_SHA}/0": ("coordinator", "north"),
    f"{_ROOT}/agents/_coordinator/up/presence": (None, "coordinator"),
    f"{_ROOT}/anything": (None, None),
    "fedpipe/elsewhere/broadcast/run": (None, None),
    "$SYS/broker/uptime": (None, None),
}
"""Each topic with who may write it and who may read it."""
KEPT = (f"{_UP}/presence", f"{_ALL}/run")
_LAST = f"{_ALL}/run"
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Yard:
    """A federation with its broker, and the clients that try it."""

    port: int
    clients: dict[str, Client]


def build(stack: ExitStack, folder: Path) -> Yard:
    """Make the federation, enrol, revoke, start the broker."""
    now = datetime.now(UTC)
    port = free_port()
    home = create_federation(folder / "home", name=FEDERATION, host="127.0.0.1", port=port, managed=True, now=now)
    settings = load_federation(home.settings)
    office = open_office(home, settings, now)
    clients = _clients(office, folder, now)
    credentials = load_credentials(home, FEDERATION, now)
    broker = ManagedBroker(home.broker, "127.0.0.1", port, guard=guard_of(home), context=credentials.context)
    broker.start()
    stack.callback(broker.stop)
    return Yard(port, clients)


def _clients(office: Office, folder: Path, now: datetime) -> dict[str, Client]:
    home, authority = office.home, office.authority
    ca = home.authority_certificate
    lost, north, south = (_enrolled(office, folder, name, now) for name in ("north", "north", "south"))
    office.publish(now)
    began = authority.certificate.not_valid_before_utc
    foreign = new_authority(FEDERATION, now)
    return {
        "coordinator": Client(ca, home.certificate("login"), home.key("login")),
        "north": north,
        "another agent": south,
        "no certificate": Client(ca),
        "expired": _issued(authority, ca, folder / "expired", began, 1 / 48),
        "revoked": lost,
        "foreign": _issued(foreign, ca, folder / "foreign", now, 1),
        "signing": Client(ca, folder / "signing.crt", folder / "signing.key"),
        "no TLS": Client(None),
    }


def _enrolled(office: Office, folder: Path, name: str, now: datetime) -> Client:
    """An agent let in anew; whoever had the name is revoked."""
    login, signing = new_login_key(), new_signing_key()
    request = make_request(name, login, signing)
    done = enrol(request, office.files, office.authority, office.door(now), now, days=1, replace=True)
    place = folder / f"{name}-{len(done.record.issues)}"
    place.with_suffix(".crt").write_text(done.bundle.login)
    place.with_suffix(".key").write_bytes(private_pem(login))
    if name == "north":
        (folder / "signing.crt").write_text(done.bundle.signing)
        (folder / "signing.key").write_bytes(private_pem(signing))
    return Client(office.home.authority_certificate, place.with_suffix(".crt"), place.with_suffix(".key"))


def _issued(authority: Authority, ca: Path, place: Path, now: datetime, days: float) -> Client:
    key = new_login_key()
    certificate = authority.issue("north", key.public_key(), "login", now, days)
    place.with_suffix(".crt").write_text(to_pem(certificate))
    place.with_suffix(".key").write_bytes(private_pem(key))
    return Client(ca, place.with_suffix(".crt"), place.with_suffix(".key"))


def measure(folder: Path, seed: int = 0) -> Figures:
    """Let everybody try everything."""
    with ExitStack() as stack:
        yard = build(stack, folder)
        everything = ["#", "$SYS/#", "$share/g/fedpipe/#", *TOPICS]
        listeners = {
            name: stack.enter_context(Listener(yard.port, client, everything)) for name, client in yard.clients.items()
        }
        inside = {name for name, listener in listeners.items() if listener.logged_in()}
        took = {
            name: publish_all(yard.port, client, [(topic, f"{seed} {name}", topic in KEPT) for topic in TOPICS])
            for name, client in yard.clients.items()
        }
        _finish(yard, {name: listeners[name] for name in inside}, seed)
        cells = {
            name: {topic: _cell(name, topic, listeners, took[name][topic], seed) for topic in TOPICS}
            for name in yard.clients
        }
        return {
            "cells": cells,
            "logins": {name: name in inside for name in yard.clients},
            "kept": {topic: _kept(stack, yard, topic, seed) for topic in KEPT},
            "taken": {name: [topic for topic in TOPICS if took[name][topic]] for name in yard.clients},
            "seed": seed,
        }


def _finish(yard: Yard, listeners: dict[str, Listener], seed: int) -> None:
    """Wait until everybody has heard all that was said: the last word comes after it, to whomever it comes."""
    last = f"{seed} last"
    publish(yard.port, yard.clients["coordinator"], _LAST, last)
    publish(yard.port, yard.clients["north"], f"{_UP}/report", last)
    for listener in listeners.values():
        listener.wait_for(last)


def _cell(name: str, topic: str, listeners: dict[str, Listener], took: bool, seed: int) -> str:  # noqa: FBT001  # what was seen, not a switch
    writer, reader = TOPICS[topic]
    reads = writer is not None and (topic, f"{seed} {writer}") in listeners[name].heard
    came = reader is not None and (topic, f"{seed} {name}") in listeners[reader].heard
    writes = took if reader is None else came
    return f"{'r' if reads else '-'}{'w' if writes else '-'}"


def _kept(stack: ExitStack, yard: Yard, topic: str, seed: int) -> str:
    """Whose message the broker keeps on a topic, as its rightful reader hears."""
    reader = TOPICS[topic][1]
    assert reader is not None
    listener = stack.enter_context(Listener(yard.port, yard.clients[reader], [topic]))
    assert listener.logged_in()
    listener.wait_for_topic(topic)
    (said,) = [payload for where, payload in listener.heard if where == topic]
    return said.removeprefix(f"{seed} ")


def table(figures: Figures) -> str:
    """The outcome for people."""
    names = list(figures["cells"])
    width = max(len(topic) for topic in TOPICS) - len(_SHA) + 8
    lines = [" " * width + "".join(f"{name:>16}" for name in names)]
    for topic in TOPICS:
        cells = [figures["cells"][name][topic] if figures["logins"][name] else "no login" for name in names]
        lines.append(f"{topic.replace(_SHA, 'SHA256'):{width}}" + "".join(f"{cell:>16}" for cell in cells))
    lines += [f"kept on {topic}: what {who} wrote" for topic, who in figures["kept"].items()]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="who can write and read which topic")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), given.seed)
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
