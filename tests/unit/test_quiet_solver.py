"""What a C library prints while it solves is not among a command's output."""

import os
import subprocess
import sys
import textwrap

SCRIPT = """
    import ctypes
    import sys

    import numpy as np
    import scipy.optimize

    from fedpipe_profiles.planning.milp import Knapsack, solve
    from fedpipe_profiles.planning.quiet import stdout_as_stderr

    libc, real = ctypes.CDLL(None), scipy.optimize.milp

    def chatty(*given, **named):
        libc.printf(b"said by the solver\\n")
        return real(*given, **named)

    scipy.optimize.milp = chatty
    print("before", flush=True)
    libc.printf(b"by C before\\n")
    random = np.random.default_rng(0)
    costs = random.uniform(1, 2, size=(2, 30))
    found = solve(Knapsack(random.uniform(1, 2, 30), costs, costs.sum(axis=1) / 3, np.full(30, -1)))
    print("after", found.gain > 0)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ))


def test_what_the_solver_prints_goes_to_standard_error() -> None:
    done = run(SCRIPT)
    assert done.stdout.split("\n") == ["before", "by C before", "after True", ""]
    assert "said by the solver" in done.stderr


def test_a_process_without_standard_output_can_solve() -> None:
    script = SCRIPT.replace('    print("before", flush=True)', "    import os; os.close(1); sys.stdout = sys.stderr")
    assert "after True" in run(script).stderr


def test_planning_alone_loads_no_solver() -> None:
    script = """
        import sys
        import fedpipe_profiles.planning.planner
        print(sorted(name for name in sys.modules if name.startswith("scipy")))
    """
    assert run(script).stdout == "[]\n"
