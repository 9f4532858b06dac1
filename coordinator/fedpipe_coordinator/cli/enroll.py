"""`fedpipe enroll`: let an agent in, by the request that its owner sent."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fedpipe_coordinator.cli.options import HomeOption, confirmed, find_home
from fedpipe_coordinator.consoles import progress_console
from fedpipe_coordinator.federation import open_office
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.security.assembly import utc_now
from fedpipe_coordinator.security.authority import AGENT_DAYS
from fedpipe_coordinator.security.enrolling import Enrolled, Meaning, judge
from fedpipe_coordinator.security.owned_files import read_limited, write_owned
from fedpipe_wire.certificates import fingerprint
from fedpipe_wire.enrolment import MAX_FILE_BYTES, Request, check_request, decode, encode, request_fingerprint

MAX_DAYS = 3650
_MEANINGS: dict[Meaning, str] = {
    "new": "was not enrolled before",
    "again": "is enrolled with these keys already, and gets its bundle once more",
    "renewal": "renews its certificates, with the consent of the key that it is known by",
    "replacement": "has OTHER KEYS than the agent that is known by this name, and not its consent",
}


def enroll(
    request: Annotated[Path, typer.Argument(help="The file that `fedpipe-agent init` made.")],
    home: HomeOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The bundle; NAME.bundle.json in the current folder when left out.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: the fingerprint was compared.")] = False,  # noqa: FBT002  # a flag
    replace: Annotated[  # noqa: FBT002  # a flag
        bool,
        typer.Option("--replace", help="Revoke all that the agent was issued before, as for lost keys."),
    ] = False,
    days: Annotated[int, typer.Option(help="How long its certificates last.", min=1, max=MAX_DAYS)] = AGENT_DAYS,
) -> None:
    """Show an agent's request, sign it once its fingerprint was compared, and write the agent's bundle.

    Example: fedpipe enroll north.request.json --home my-federation
    """
    place = find_home(home)
    office = open_office(place, load_federation(place.settings), utc_now())
    asked = decode(Request, read_limited(request, MAX_FILE_BYTES))
    check_request(asked)
    meaning = judge(asked, office.files.read().records, utc_now())
    console = progress_console()

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    say(f"Agent {asked.agent} {_MEANINGS[meaning]}.")
    say(f"Fingerprint of the request: {request_fingerprint(asked)}")
    if meaning != "replacement" or replace:  # else `enrol` says why not, and there is nothing to ask
        confirmed("Did its owner read the same fingerprint to you?", yes=yes)
    done = office.let_in(asked, utc_now(), days=days, replace=replace)
    bundle = out or Path(f"{asked.agent}.bundle.json")
    write_owned(bundle, encode(done.bundle))
    _tell(say, done, bundle, fingerprint(office.authority.certificate))
    sys.stdout.write(f"{bundle}\n")


def _tell(say: Callable[[str], None], done: Enrolled, bundle: Path, federation: str) -> None:
    say(f"Agent {done.record.agent} may take part until {done.issue.expires():%Y-%m-%d}.")
    say(f"Send {bundle} to its owner by any way, and this fingerprint of the federation by another: {federation}")
    say(f"Next, at the agent: fedpipe-agent join {bundle.name} --fingerprint {federation}")
