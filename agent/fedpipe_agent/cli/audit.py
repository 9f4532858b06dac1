"""`fedpipe-agent audit verify` and `audit show`: the record of what left this silo."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpipe_agent.audit_reading import Findings, lines_of
from fedpipe_agent.audit_reading import verify as verify_record
from fedpipe_agent.cli.options import Config
from fedpipe_agent.config import load_agent_settings
from fedpipe_agent.errors import unusable

app = typer.Typer(help="The record of everything that left this silo.", no_args_is_help=True)
_SHOWN = 16
_MAX_SHOWN = 200


class OutputFormat(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


Format = Annotated[OutputFormat, typer.Option("--format", help="table for people, json for programs.")]


@app.command("verify")
def verify(config: Config = Path("agent.toml"), output: Format = OutputFormat.TABLE) -> None:
    """Check that no line of the record was edited, put in, moved or taken out.

    Example: fedpipe-agent audit verify
    """
    folder = load_agent_settings(config).state
    with _telling(folder):
        found = verify_record(folder)
    if output is OutputFormat.JSON:
        typer.echo(json.dumps({name: getattr(found, name) for name in Findings.__dataclass_fields__}))
        return
    typer.echo(f"the record is whole: {found.lines} lines, {found.publications} publications")
    typer.echo(f"what left this silo: {found.published_bytes} bytes")
    if found.first > 1:
        typer.echo(f"lines 1 to {found.first - 1} are not in {folder}: check them where they were moved to")
    for line in found.kills:
        typer.echo(
            f"before line {line} the agent was killed: up to half a second of publications may be missing there; the "
            "coordinator's record has them"
        )


@app.command("show")
def show(
    config: Config = Path("agent.toml"),
    run: Annotated[str | None, typer.Option("--run", help="Only what belongs to this run.")] = None,
    output: Format = OutputFormat.TABLE,
) -> None:
    """Print the record: its messages, the chunks of updates, and packets that were refused.

    Example: fedpipe-agent audit show --run claims-20250101-120000
    """
    folder = load_agent_settings(config).state
    line_of: Callable[[dict[str, Any]], str] = json.dumps if output is OutputFormat.JSON else _row
    with _telling(folder):
        for line in lines_of(folder, run):
            typer.echo(line_of(line))


def _row(line: dict[str, Any]) -> str:
    what = line.get("type") or line.get("fault") or ""
    if "chunk" in line:
        what = f"{str(line.get('blob', ''))[:_SHOWN]}/{line['chunk']}"
    parts = (line.get("time"), line.get("kind"), what, line.get("bytes", ""), str(line.get("sha256", ""))[:_SHOWN])
    return "  ".join(map(_harmless, (*parts, line.get("topic", ""))))


def _harmless(value: object) -> str:
    return "".join(each if each.isprintable() else "?" for each in str(value)[:_MAX_SHOWN])


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unusable(folder, error) from error
