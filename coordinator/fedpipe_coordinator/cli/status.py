"""`fedpipe status`: what runs there are and how far they are."""

import json

import typer
from rich.table import Table
from rich.text import Text

from fedpipe_coordinator.cli.options import FormatOption, HomeOption, OutputFormat, find_home
from fedpipe_coordinator.consoles import result_console
from fedpipe_coordinator.control import ask
from fedpipe_profiles.plain_text import plain


def status(home: HomeOption = None, output: FormatOption = OutputFormat.TABLE) -> None:
    """Show the coordinator's runs.

    Example: fedpipe status --format json
    """
    reply = next(ask(find_home(home).path, {"op": "status"}), {})
    if output is OutputFormat.JSON:
        typer.echo(json.dumps(reply))
        return
    table = Table(
        title=f"federation {reply['federation']}: {reply['agents_online']} agents online", title_justify="left"
    )
    for name in ("run", "phase", "round", "first metric", "last metric", "note"):
        table.add_column(name)
    for entry in reply["runs"]:
        table.add_row(
            entry["run"],
            entry["phase"],
            f"{entry['round']}/{entry['rounds']}",
            _metric(entry["initial_metric"]),
            _metric(entry["final_metric"]),
            Text(plain(entry["note"])),  # agents write some of it, and rich would read it as markup
        )
    result_console().print(table)


def _metric(metric: dict[str, float] | None) -> str:
    if not metric:
        return "-"
    accuracy = f", accuracy {metric['accuracy']:.3f}" if "accuracy" in metric else ""
    return f"loss {metric['loss']:.3f}{accuracy}"
