"""`fedpipe demo`: a real federated fine-tune on this machine."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedpipe_coordinator.cli.options import FormatOption, OutputFormat
from fedpipe_coordinator.consoles import progress_console
from fedpipe_coordinator.demo.command import DemoOptions, Task, run_demo

MIB = 1024 * 1024


def demo(
    model: Annotated[str | None, typer.Option(help="Folder or hub id; all-MiniLM-L6-v2 when left out.")] = None,
    data: Annotated[Path | None, typer.Option(help="jsonl, csv or parquet: a file, or a folder of them.")] = None,
    task: Annotated[Task, typer.Option(help="What to learn.")] = "sequence-classification",
    rounds: Annotated[int | None, typer.Option(help="How many rounds.", min=1, max=1000)] = None,
    agents: Annotated[int, typer.Option(help="How many silos.", min=1, max=32)] = 4,
    out: Annotated[Path | None, typer.Option(help="An empty or new folder for everything the demo writes.")] = None,
    seed: Annotated[int, typer.Option(help="Decides data, silos and training.", min=0)] = 0,
    output: FormatOption = OutputFormat.TABLE,
) -> None:
    """Fine-tune one model across four unlike silos on this machine, each a process with private data.

    Example: fedpipe demo --model ./my-model --data ./my-data --task causal-lm --rounds 4
    """
    folder = out or Path(f"fedpipe-demo-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    options = DemoOptions(
        out=folder.resolve(), seed=seed, agents=agents, model=model, data=data, task=task, rounds=rounds
    )
    console = progress_console()
    summary = run_demo(options, console)
    if output is OutputFormat.JSON:
        typer.echo(json.dumps(summary))
        return
    _say_what_was_learned(summary, options.out, console)


def _say_what_was_learned(summary: dict[str, Any], out: Path, console: Console) -> None:
    first, last = summary["initial_metric"] or {}, summary["final_metric"] or {}
    console.rule("what was learned")
    for name in ("accuracy", "loss"):
        if name in first and name in last:
            console.print(f"held-out {name}: {first[name]:.3f} before, {last[name]:.3f} after", markup=False)
    demo = summary["demo"]
    console.print(
        f"{demo['seconds']:.0f} s in all, {demo['peak_memory_bytes'] / MIB:.0f} MiB at the peak of all processes",
        markup=False,
    )
    console.print(f"run folder:   {out}  (summary.json, rounds.jsonl, audit.jsonl, report.html)", markup=False)
    console.print(f"adapter:      {summary['exports']['adapter']}", markup=False)
    console.print(f"merged model: {summary['exports']['merged']}", markup=False)
    console.print("to load the adapter:", markup=False)
    classify = summary["task"] == "sequence-classification"
    auto = "AutoModelForSequenceClassification" if classify else "AutoModelForCausalLM"
    labels = f", num_labels={len(summary['labels'])}" if classify else ""
    console.print(f"  from peft import PeftModel; from transformers import {auto}", markup=False, soft_wrap=True)
    console.print(f"  base = {auto}.from_pretrained({summary['model']!r}{labels})", markup=False, soft_wrap=True)
    console.print(
        f"  model = PeftModel.from_pretrained(base, {summary['exports']['adapter']!r})", markup=False, soft_wrap=True
    )
