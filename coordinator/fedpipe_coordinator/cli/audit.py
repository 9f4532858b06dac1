"""`fedpipe audit`: whether records are as they were written, and whether two of them agree."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from fedpipe_coordinator.audit.comparison import Comparison, Sent, compare, read_sent
from fedpipe_coordinator.audit.sources import AuditSources
from fedpipe_coordinator.audit.verification import Verdict
from fedpipe_coordinator.cli.options import FormatOption, HomeOption, OutputFormat, find_home
from fedpipe_coordinator.consoles import result_console
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.records.run_folder import RunFolder
from fedpipe_coordinator.view import plain

app = typer.Typer(help="Check the records of who did what.", no_args_is_help=True)


@app.command("verify")
def verify(
    run: Annotated[str | None, typer.Argument(help="A run; the federation's record and all runs if left out.")] = None,
    home: HomeOption = None,
    output: FormatOption = OutputFormat.TABLE,
) -> None:
    """Find lines of the audit records that were edited, removed, added or moved.

    Example: fedpipe audit verify --format json
    """
    sources = AuditSources(find_home(home))
    strays = [verdict for name, verdict in sources.strays().items() if run in (None, name)]
    runs = [stored for stored in sources.runs() if run in (None, stored.run)]
    if run is not None and not runs and not strays:
        raise CliError(f"no run {plain(run, 200)!r}: 'fedpipe status' lists them", ExitCode.USAGE)
    verdicts = [] if run is not None else [sources.verify_federation()]
    verdicts += [sources.verify_run(stored, asked=run is not None) for stored in runs]
    verdicts += strays
    whole = not any(verdict.findings for verdict in verdicts)
    if output is OutputFormat.JSON:
        typer.echo(json.dumps({"whole": whole, "records": [asdict(verdict) for verdict in verdicts]}))
    else:
        _print_verdicts(verdicts)
    if not whole:
        count = sum(bool(verdict.findings) for verdict in verdicts)
        raise CliError(f"{count} of {len(verdicts)} records are not as they were written", ExitCode.AUDIT_BROKEN)


@app.command("compare")
def compare_records(
    agent_audit: Annotated[Path, typer.Argument(help="The agent's audit.jsonl, or the folder with all its parts.")],
    home: HomeOption = None,
    output: FormatOption = OutputFormat.TABLE,
) -> None:
    """Compare what an agent recorded as sent with what the coordinator recorded as taken.

    Example: fedpipe audit compare ./st-mary/audit.jsonl
    """
    sources = AuditSources(find_home(home))
    try:
        sent = read_sent(b"".join(path.read_bytes() for path in _parts(agent_audit)))
    except OSError as error:
        raise CliError(f"{agent_audit} cannot be read: {error.strerror or error}", ExitCode.USAGE) from error
    if len(sent.agents) != 1:
        named = ", ".join(plain(name, 64) for name in sorted(sent.agents)[:5]) or "none"
        raise CliError(f"{agent_audit} must be the record of one agent, its topics name {named}", ExitCode.USAGE)
    (agent,) = sent.agents
    found = compare(agent, sent, {stored.run: RunFolder(stored.folder).audit() for stored in sources.runs()})
    if output is OutputFormat.JSON:
        typer.echo(json.dumps({**asdict(found), "broken": sent.broken, "kills": sent.kills}))
    else:
        _print_comparison(found, sent)
    wrong = [each for each in found.differences if each.kind != "not-taken"]
    if wrong or sent.broken:
        raise CliError(
            f"{len(wrong)} differences between the record of {plain(agent, 64)} and the coordinator's"
            + (f"; line {sent.broken[0]} of {agent_audit} is not as it was written" if sent.broken else ""),
            ExitCode.AUDIT_DIFFERS,
        )


def _print_verdicts(verdicts: Sequence[Verdict]) -> None:
    console = result_console()
    for verdict in verdicts:
        state = "NOT as it was written" if verdict.findings else "whole"
        _say(f"{verdict.file}: {verdict.lines} lines, {state}", "bold red" if verdict.findings else "")
        for finding in verdict.findings:
            _say(f"  {finding.file}:{finding.line}: {finding.text}", "red")
        for notice in verdict.notices:
            _say(f"  {notice}", "dim")
    console.print(Text("Keep the newest hashes elsewhere: ", style="dim"), soft_wrap=True)
    for verdict in verdicts:
        _say(f"  {verdict.newest}  {verdict.file}", "dim")


def _parts(path: Path) -> list[Path]:
    """The files of an agent's record, oldest first; right after one was full there is no newest one."""
    older, newest = sorted(path.glob("audit-*.jsonl")), path / "audit.jsonl"
    if not path.is_dir():
        return [path]
    return [*older, newest] if newest.exists() or not older else older


def _print_comparison(found: Comparison, sent: Sent) -> None:
    _say(f"agent {found.agent}: {found.agreed} updates and messages stand in both records")
    for difference in found.differences:
        _say(f"  {difference.kind}: {difference.text}", "" if difference.kind == "not-taken" else "red")
    for topic, count in found.unnamed.items():
        _say(f"  {count} messages on {topic} that no decision names", "dim")
    if sent.kills:
        _say(f"  the agent was killed {sent.kills} times: its record may lack the last half second before each", "dim")
    for line in sent.broken:
        _say(f"  line {line} of the agent's record is not as it was written", "red")


def _say(text: str, style: str = "") -> None:
    result_console().print(Text(plain(text, 2000), style=style), soft_wrap=True)
