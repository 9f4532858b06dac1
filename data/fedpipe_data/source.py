"""Where a dataset lies and how to read it: the `[datasets.NAME]` table of agent.toml.

Owns the type; `tables.py` reads, `examples.py` makes examples of rows.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from fedpipe_profiles.values import Settings

Format = Literal["jsonl", "csv", "parquet"]


class Fields(Settings):
    """Which column of a row is what. Those left out are found when that is obvious, and the choice is said."""

    text: str | None = None
    label: str | None = None
    prompt: str | None = None
    target: str | None = None


class DatasetSource(Settings):
    """One dataset of an agent: a file, or a folder of files."""

    path: Path
    format: Format | None = Field(default=None, description="by the file's ending when left out")
    fields: Fields = Fields()
    held_out_path: Path | None = Field(default=None, description="a file of held-out examples, instead of a part")
    held_out_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
