"""`fedpipe-agent probe`: show what this machine can do, as the coordinator will be told."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedpipe_agent.config import load_agent_settings
from fedpipe_agent.probe import probe_device
from fedpipe_profiles.device import MIB, DeviceProfile, Limits


class OutputFormat(StrEnum):
    """How the profile is printed."""

    TABLE = "table"
    JSON = "json"


def probe(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Settings whose limits count; none when left out.")
    ] = None,
    output: Annotated[
        OutputFormat, typer.Option("--format", help="table for people, json for programs.")
    ] = OutputFormat.TABLE,
) -> None:
    """Measure this machine and print its profile; nothing is sent anywhere.

    Example: fedpipe-agent probe --format json
    """
    settings = load_agent_settings(config) if config is not None else None
    profile, notes = probe_device(
        settings.name if settings else "this-machine",
        limits=settings.to_limits() if settings else Limits(),
        device=settings.training.device if settings else "auto",
        datasets=sorted(settings.datasets) if settings else (),
    )
    for note in notes:
        typer.echo(note, err=True)
    if output is OutputFormat.JSON:
        typer.echo(profile.model_dump_json(exclude_none=True))
    else:
        Console(highlight=False).print(_table(profile))


def _table(profile: DeviceProfile) -> Table:
    table = Table(title=f"device profile of {profile.agent}", title_justify="left", show_header=False)
    host, gpu = profile.host, profile.accelerator
    table.add_row("processor", f"{host.cpu}, {host.threads} threads, {profile.threads()} lent")
    table.add_row("memory", f"{host.free_bytes / MIB:.0f} MiB free of {host.total_bytes / MIB:.0f} MiB")
    if gpu is not None:
        kind = "unified" if gpu.unified_memory else "dedicated"
        table.add_row(
            "GPU", f"{gpu.name}, {gpu.free_bytes / MIB:.0f} MiB free of {gpu.total_bytes / MIB:.0f} MiB, {kind}"
        )
        table.add_row("driver", f"{gpu.driver or '?'}, compute capability {gpu.compute_capability or '?'}")
    else:
        table.add_row("GPU", "none")
    table.add_row("lent to a trainer", f"{profile.memory_limit_bytes() / MIB:.0f} MiB")
    table.add_row("bits", ", ".join(str(bits) for bits in profile.supported_bits))
    for rate in profile.matmul:
        m, k, n = rate.shape
        text = f"{rate.flops_per_s / 1e9:.1f} GFLOP/s ({rate.source}, {m}x{k}x{n}"
        table.add_row(f"matmul {rate.dtype}", f"{text}, {rate.repeats} repeats, spread {rate.relative_spread:.0%})")
    bandwidth = profile.bandwidth
    table.add_row(
        "memory bandwidth",
        f"{bandwidth.bytes_per_s / 1e9:.1f} GB/s ({bandwidth.source}, {bandwidth.repeats} repeats, "
        f"spread {bandwidth.relative_spread:.0%})",
    )
    table.add_row("link", "measured over the broker when the agent runs")
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in sorted(profile.versions.items())))
    return table
