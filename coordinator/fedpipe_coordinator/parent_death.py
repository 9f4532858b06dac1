"""Child processes that end with the process that started them, however that ends.

Owns one system call of Linux. The kernel's rule: the signal comes when the *thread* that started the child ends.
"""

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn` that asks for a signal when the starting thread ends.

    Args:
        number: SIGTERM lets the child save what it has, SIGKILL does not.
    """
    # Loaded before the fork: the child may only make system calls.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def set_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the signal was asked for
            os._exit(1)

    return set_death_signal
