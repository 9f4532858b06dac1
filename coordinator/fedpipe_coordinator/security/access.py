"""Who may read and write which topic: the broker's access list, as Mosquitto reads it.

Owns the one text of it, the same for a managed broker and for one of its owner's. Pure.

A name in it is the common name of a certificate. Names hold no wildcard and no space (`check_name`), so no agent can be
named so that a line means something else.
"""

from collections.abc import Iterable
from itertools import pairwise

from fedpipe_wire.sealing import COORDINATOR
from fedpipe_wire.topics import TopicError, check_name

CHANNELS = ("presence", "profile", "contribution", "report")
"""What an agent writes besides the chunks of its blobs."""


_DENIED = "topic deny #"


def access_text(federation: str, denied: Iterable[str]) -> str:
    """The access list of a federation.

    Agents need no lines of their own: what a pattern allows is only of use to who logs in with a certificate of that
    name. Those whose certificates were revoked or ran out are denied everything: the broker looks at a certificate when
    somebody logs in, and keeps a connection that it let in.
    """
    root = f"fedpipe/{check_name(federation, 'federation name')}"
    lines = [
        "# Written by FedPipe whenever an agent is enrolled or revoked: changes here are lost.",
        f"user {COORDINATOR}",
        f"topic read {root}/agents/+/up/#",
        # To make the broker forget what somebody asked it to keep.
        f"topic write {root}/agents/+/up/blob/#",
        f"topic write {root}/agents/+/down/#",
        f"topic write {root}/broadcast/#",
    ]
    for name in sorted(denied):
        lines += ["", f"user {check_name(name, 'agent name')}", _DENIED]
    lines += [
        "",
        *(f"pattern write {root}/agents/%u/up/{channel}" for channel in CHANNELS),
        f"pattern write {root}/agents/%u/up/blob/+/+",
        f"pattern read {root}/agents/%u/down/#",
        f"pattern read {root}/broadcast/#",
    ]
    return "\n".join(lines) + "\n"


def denied_in(text: str) -> set[str]:
    """The agents that an access list denies everything; of lines that `access_text` does not write, none counts."""
    lines = text.splitlines()
    found = {line.removeprefix("user ") for line, after in pairwise(lines) if after == _DENIED}
    return {name for name in found if _is_name(name)}


def _is_name(name: str) -> bool:
    try:
        check_name(name, "agent name")
    except TopicError:
        return False
    return True
