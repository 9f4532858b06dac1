"""`fedpipe doctor`: is this federation sound, and its broker tight?"""

import dataclasses
import json
from collections.abc import Iterable

import typer
from rich.table import Table
from rich.text import Text

from fedpipe_coordinator.cli.options import FormatOption, HomeOption, OutputFormat, find_home
from fedpipe_coordinator.consoles import result_console
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.security.assembly import utc_now
from fedpipe_coordinator.security.broker_checks import Surgery, check_broker
from fedpipe_coordinator.security.credentials import load_authority
from fedpipe_coordinator.security.doctor import Finding, Patient, check_files, failed
from fedpipe_coordinator.security.owned_files import OwnedFileError
from fedpipe_coordinator.view import plain
from fedpipe_wire.certificates import CertificateError

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def doctor(home: HomeOption = None, output: FormatOption = OutputFormat.TABLE) -> None:
    """Check the folder, and the broker by really connecting to it with certificates made for the purpose.

    Example: fedpipe doctor --home my-federation
    """
    place = find_home(home)
    patient = Patient(place, load_federation(place.settings), utc_now())
    findings = [*check_files(patient), *_broker(patient)]
    if output is OutputFormat.JSON:
        typer.echo(
            json.dumps({"sound": not failed(findings), "checks": [dataclasses.asdict(each) for each in findings]})
        )
    else:
        result_console().print(_table(findings))
    if failed(findings):
        count = sum(each.state == "failed" for each in findings)
        raise CliError(f"{count} of {len(findings)} checks failed", ExitCode.CHECKS_FAILED)


def _broker(patient: Patient) -> list[Finding]:
    broker = patient.settings.broker
    if broker.insecure:
        return []
    try:
        authority = load_authority(patient.home, patient.name, patient.now)
    except (OwnedFileError, CertificateError):
        return [Finding("broker", "skipped", "nothing can be tried without the authority")]
    with Surgery(authority, broker.host, broker.port, patient.now) as surgery:
        return check_broker(surgery)


def _table(findings: Iterable[Finding]) -> Table:
    table = Table(title="checks", title_justify="left")
    for name in ("check", "result", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for each in findings:
        state = Text(each.state, style=_STYLES[each.state])
        table.add_row(Text(plain(each.check)), state, Text(plain(each.found)), Text(plain(each.remedy)))
    return table
