"""How much memory a trainer takes before it loads any model, measured on this machine.

Starts a trainer by its module's name, as an agent does, asks it to open, and reads the figure from its answer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

START_S = 180.0


class RuntimeMeasurementError(Exception):
    """No trainer could be started; the message has its last words."""


def measure_runtime_bytes(model: str, task: str, data: Path) -> int:
    """Bytes that a trainer process holds when it is ready for its first request.

    Raises:
        RuntimeMeasurementError: if it does not get ready: most likely the agent extra is not installed.
    """
    terms: dict[str, object] = {
        "name": "demo",
        "model": model,
        "task": task,
        "dataset": "demo",
        "seed": 0,
        "sequence_length": 8,
    }
    terms |= {"evaluation_examples": 1, "max_rank": 1, "batch_sizes": [1]}
    request: dict[str, object] = {
        "op": "open",
        "run": "measure",
        "terms": terms,
        "model": model,
        "dataset": {"path": str(data)},
    }
    request |= {"device": "cpu", "supported_bits": [32], "memory_limit_bytes": 1 << 40, "threads": 1}
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "fedpipe_agent.train"],
            input=json.dumps(request) + "\n",
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
            # as agents start a trainer on a small machine
            env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072"},
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeMeasurementError(f"a trainer was not ready within {START_S:.0f} s") from error
    for line in ended.stdout.splitlines():
        reply = json.loads(line)
        if reply.get("reply") == "opened":
            return int(reply["context_bytes"])
    last = (ended.stderr or ended.stdout).strip().splitlines()[-1:] or ["no message"]
    raise RuntimeMeasurementError(f"a trainer could not be started ({ended.returncode}): {last[0]}")
