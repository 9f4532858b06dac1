"""`python -m fedpipe_agent.train`: the trainer process. Only its daemon starts it."""

import ctypes
import os
import signal
import sys

from fedpipe_agent.train.serve import serve
from fedpipe_agent.trainer_protocol import Reply

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends (prctl(2)); Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def claim_stdout() -> int:
    """Take stdout for the protocol: whatever else is written to it from now on goes to stderr.

    Returns:
        The descriptor that leads to the daemon.
    """
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


def main() -> int:
    """Serve requests from stdin until its end."""
    die_with_parent()
    with os.fdopen(claim_stdout(), "wb") as daemon:

        def say(reply: Reply) -> None:
            daemon.write(reply.model_dump_json().encode() + b"\n")
            daemon.flush()

        serve(sys.stdin.buffer, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
