"""Where a command prints: progress on stderr, results on stdout."""

import sys

from rich.console import Console


def progress_console() -> Console:
    """Progress goes to stderr, so that stdout holds results only. Wide where nobody watches: logs do not wrap."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else 160, highlight=False)


def result_console() -> Console:
    """Results go to stdout."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
