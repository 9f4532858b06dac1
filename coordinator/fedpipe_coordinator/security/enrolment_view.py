"""Enrolments as plain data and as a table for people. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedpipe_coordinator.security.enrolment_record import Record
from fedpipe_coordinator.security.roster import Register
from fedpipe_coordinator.view import plain
from fedpipe_wire.sealing import key_id

SOON_DAYS = 30
_STYLES = {"enrolled": "green", "expired": "yellow", "revoked": "red", "damaged": "red"}


def describe_enrolments(register: Register, now: datetime) -> dict[str, dict[str, Any]]:
    """All agents that were ever enrolled, by name."""
    described = {name: _describe(record, now) for name, record in register.records.items()}
    damaged = {name: {"state": "damaged", "note": why} for name, why in register.damaged.items()}
    return dict(sorted((described | damaged).items()))


def _describe(record: Record, now: datetime) -> dict[str, Any]:
    last = record.issues[-1]
    state = record.standing(now)
    days = (last.expires() - now).days
    note = last.reason if state == "revoked" else ""
    if state == "enrolled" and days < SOON_DAYS:
        note = f"runs out in {days} days"
    return {
        "state": state,
        "enrolled": last.at.isoformat(timespec="seconds"),
        "expires": last.expires().isoformat(timespec="seconds"),
        "revoked": None if last.revoked is None else last.revoked.isoformat(timespec="seconds"),
        "request": last.request,
        "key": key_id(last.signing_key()),
        "note": note,
    }


def enrolments_table(enrolled: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Who is enrolled, until when."""
    table = Table(title="enrolled", title_justify="left")
    for name in ("agent", "state", "since", "until", "signing key", "note"):
        table.add_column(name)
    for agent, entry in enrolled.items():
        state = str(entry["state"])
        table.add_row(
            Text(plain(agent)),
            Text(state, style=_STYLES.get(state, "")),
            str(entry.get("enrolled", ""))[:10],
            str(entry.get("expires", ""))[:10],
            str(entry.get("key", "")),
            Text(plain(entry.get("note", ""))),
        )
    return table
