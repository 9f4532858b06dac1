"""`fedpipe plan`: what would each device get, and why; needs no agent, no broker and no tensor library."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpipe_coordinator.cli.options import FormatOption, HomeOption, OutputFormat, find_home
from fedpipe_coordinator.config import load_job
from fedpipe_coordinator.consoles import result_console
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.whatif.agents import stored_profiles
from fedpipe_coordinator.whatif.asking import Question, answer, nothing_fits
from fedpipe_coordinator.whatif.devices import (
    FleetMember,
    Overrides,
    known_agents,
    named_devices,
    representative_devices,
)
from fedpipe_coordinator.whatif.hub import fetch_config
from fedpipe_coordinator.whatif.model_config import Places, cache_folders
from fedpipe_coordinator.whatif.plot import plot_svg, write_plot
from fedpipe_coordinator.whatif.printing import render
from fedpipe_profiles.catalog.model_catalogue import catalogued_model


def plan(
    job: Annotated[Path, typer.Argument(help="The job file.")],
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="catalog:t4, catalog:t4x3 for three, or a profile.json of `fedpipe-agent probe`; repeatable.",
        ),
    ] = None,
    uplink: Annotated[float | None, typer.Option(help="Mbit/s from every device to the coordinator.")] = None,
    downlink: Annotated[float | None, typer.Option(help="Mbit/s from the coordinator to every device.")] = None,
    memory_limit: Annotated[int | None, typer.Option(help="MiB that every owner lends, at most.")] = None,
    config: Annotated[Path | None, typer.Option(help="The model's config.json, where it is not found.")] = None,
    examples: Annotated[int | None, typer.Option(help="Training examples of every device.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Padded tokens per example, on average.")] = None,
    deadline: Annotated[str | None, typer.Option(help="Seconds of a round, or auto, in place of the job's.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Override a key, as in rounds.number=10; repeatable.")
    ] = None,
    contributions: Annotated[
        Path | None, typer.Option(help="A run's folder whose contributions to use; assumed when left out.")
    ] = None,
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Show where the memory goes.")] = False,  # noqa: FBT002  # a flag on the command line
    plot: Annotated[Path | None, typer.Option(help="Write the curve of deadlines to this SVG file.")] = None,
    home: HomeOption = None,
    output: FormatOption = OutputFormat.TABLE,
) -> None:
    """Say what each device would get of a job, how long a round is, and what more memory or a faster link would buy.

    Example: fedpipe plan job.toml --device catalog:rtx-4090x4 --device catalog:t4 --uplink 20
    """
    overrides = Overrides(uplink_mbit=uplink, downlink_mbit=downlink, memory_limit_mib=memory_limit)
    settings = load_job(job, [*(override or ()), *([f"rounds.deadline_s={deadline}"] if deadline else ())])
    members = named_devices(device, overrides) if device else _home_devices(home, overrides)
    answered = answer(
        Question(
            job=settings,
            members=members or representative_devices(overrides),
            places=_places(job.parent),
            examples=examples,
            tokens=tokens,
            config=config,
            contributions=contributions,
            curve=plot is not None or output is OutputFormat.JSON,
        )
    )
    if plot is not None:
        write_plot(plot, plot_svg(answered))
    _say(answered, output, breakdown=breakdown)
    missing = nothing_fits(answered)
    if missing is not None:
        raise CliError(missing, ExitCode.NOTHING_FITS)


def _home_devices(home: Path | None, overrides: Overrides) -> tuple[FleetMember, ...]:
    """The agents of the federation that is named or worked in; none where there is none, and none is named."""
    named = home is not None or "FEDPIPE_HOME" in os.environ
    if not named and not Path("federation.toml").is_file():
        return ()
    place = find_home(home)
    members = known_agents(stored_profiles(place.store), overrides)
    if named and not members:
        raise CliError(
            f"the coordinator of {place.path} has heard of no agent yet: name devices with --device",
            ExitCode.INPUT_UNUSABLE,
        )
    return members


def _places(folder: Path) -> Places:
    return Places(
        folders=(Path(), folder),
        caches=cache_folders(os.environ, Path.home()),
        catalogue=catalogued_model,
        fetch=fetch_config,
    )


def _say(answered: dict[str, Any], output: OutputFormat, *, breakdown: bool) -> None:
    if output is OutputFormat.JSON:
        typer.echo(json.dumps(answered))
        return
    console = result_console()
    for part in render(answered, breakdown=breakdown):
        console.print(part)
