"""Keeps what a C library prints out of standard output, where a command's JSON goes.

HiGHS has lines that no option of it silences. They are written by C, below `sys.stdout`, so the descriptor itself is
turned to standard error while it runs.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT, _STDERR = 1, 2
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """Within it, what anything writes to descriptor 1 goes to standard error; one thread at a time.

    A process that has closed one of the two is left as it is.
    """
    with _ONE_AT_A_TIME:
        flush = ctypes.CDLL(None).fflush
        flush(None)  # what was printed before goes where it should
        try:
            kept = os.dup(_STDOUT)
        except OSError:
            yield
            return
        try:
            _turn(_STDERR)
            yield
        finally:
            flush(None)  # C keeps lines back where no terminal reads them
            _turn(kept)
            os.close(kept)


def _turn(to: int) -> None:
    try:
        os.dup2(to, _STDOUT)
    except OSError:
        return
