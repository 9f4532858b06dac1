"""`fedpipe revoke`: let an agent in no more."""

import sys
from typing import Annotated

import typer

from fedpipe_coordinator.audit.federation_audit import FederationAudit
from fedpipe_coordinator.cli.options import HomeOption, confirmed, find_home
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.federation import open_office
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.home_lock import holder
from fedpipe_coordinator.security.assembly import utc_now
from fedpipe_coordinator.security.enrolling import DEFAULT_REASON, Revoked, revoked_entry
from fedpipe_coordinator.security.enrolling import revoke as revoke_agent
from fedpipe_coordinator.security.enrolment_record import MAX_REASON
from fedpipe_coordinator.view import plain


def revoke(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    home: HomeOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = DEFAULT_REASON,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002  # a flag
) -> None:
    """Revoke all certificates of an agent; a running coordinator drops its connection at once.

    Example: fedpipe revoke north --reason "machine stolen"
    """
    if len(reason) > MAX_REASON:
        raise CliError(f"--reason has {len(reason)} characters, at most {MAX_REASON} are kept", ExitCode.USAGE)
    place = find_home(home)
    settings = load_federation(place.settings)
    office = open_office(place, settings, utc_now())
    confirmed(f"Revoke agent {plain(agent, 80)}? It can only come back with new keys.", yes=yes)
    now = utc_now()
    done = revoke_agent(agent, office.files, now, plain(reason))
    office.publish(now)
    _record(FederationAudit(place.path), done)
    last = done.record.issues[-1]
    before = f" It was on {last.revoked:%Y-%m-%d}: {plain(last.reason)}" if done.again else ""
    sys.stderr.write(f"Agent {agent} is revoked.{before}\n")
    if holder(place.path) is not None:
        sys.stderr.write("The running coordinator listens to it no more, and goes on without it.\n")
    if not settings.broker.managed:
        sys.stderr.write(
            f"Copy {place.revocations} and {place.access} to your broker and restart it: until then it keeps the "
            "connection that the agent may have.\n"
        )
    sys.stdout.write(f"{agent}\n")


def _record(audit: FederationAudit, done: Revoked) -> None:
    kind, who, text, data = revoked_entry(done)
    known = done.again and any(
        (line["kind"], line["who"], line.get("data")) == (kind, who, data) for line in audit.lines()
    )
    if not known:
        audit.append(kind, who, text, data)
