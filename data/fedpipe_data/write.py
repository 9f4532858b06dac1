"""Writing examples as JSON lines that `load_dataset` reads back as they were."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from fedpipe_data.examples import Example


def write_jsonl(path: Path, examples: Iterable[Example]) -> int:
    """Write one JSON object per example, readable by the owner only, all or nothing.

    The fields are `text` and `label`, or `prompt` and `target`.

    Returns:
        How many were written.

    Raises:
        OSError: if the folder is missing, may not be written or is full.
    """
    count = 0
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.touch(mode=0o600)
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            for example in examples:
                file.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")
                count += 1
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count
