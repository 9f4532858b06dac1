"""Who may read and write which topic: the broker's access list, as Mosquitto reads it.

Owns the one text of it, the same for a managed broker and for one of its owner's. Pure.

A name in it is the common name of a certificate. Names hold no wildcard and no space (`check_name`), so no agent can be
named so that a line means something else.
"""

from collections.abc import Iterable

from fedpipe_wire.sealing import COORDINATOR
from fedpipe_wire.topics import check_name

CHANNELS = ("presence", "profile", "contribution", "report")
"""What an agent writes besides the chunks of its blobs."""


def access_text(federation: str, revoked: Iterable[str]) -> str:
    """The access list of a federation.

    Agents need no lines of their own: what a pattern allows is only of use to who logs in with a certificate of that
    name. Those that were revoked are denied everything, in case the broker keeps a connection that they have.
    """
    root = f"fedpipe/{check_name(federation, 'federation name')}"
    lines = [
        "# Written by FedPipe whenever an agent is enrolled or revoked: changes here are lost.",
        f"user {COORDINATOR}",
        f"topic read {root}/agents/+/up/#",
        f"topic write {root}/agents/+/down/#",
        f"topic write {root}/broadcast/#",
    ]
    for name in sorted(revoked):
        lines += ["", f"user {check_name(name, 'agent name')}", "topic deny #"]
    lines += [
        "",
        *(f"pattern write {root}/agents/%u/up/{channel}" for channel in CHANNELS),
        f"pattern write {root}/agents/%u/up/blob/+/+",
        f"pattern read {root}/agents/%u/down/#",
        f"pattern read {root}/broadcast/#",
    ]
    return "\n".join(lines) + "\n"
