"""Every decoder of strangers' bytes, fuzzed for a short while.

For longer: python tests/fuzz/run_fuzz.py TARGET --seconds N
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_targets import targets

RUNNER = Path(__file__).with_name("run_fuzz.py")
SECONDS = 4
LEAST_RUNS = 200
KNOWN = targets()


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_seed_is_accepted(name: str) -> None:
    for seed in KNOWN[name].seeds:
        assert KNOWN[name].law(seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_no_input_breaks_the_law(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has no build for this machine")
    command: list[str | Path] = [sys.executable, RUNNER, name, "--seconds", str(SECONDS), "--keep", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-4000:]
    assert list(tmp_path.iterdir()) == []
    runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    assert runs is not None, done.stderr[-2000:]
    assert int(runs.group(1)) >= LEAST_RUNS
