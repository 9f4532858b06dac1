"""Which blobs the runs still need.

Pure. Everything else in the blob store is of runs that are over, or of transfers that nobody waits for.
"""

from collections.abc import Iterable, Iterator

from fedpipe_coordinator.runs.run_state import RunState


def needed_blobs(runs: Iterable[RunState]) -> set[str]:
    """The last adapter of every run; of open runs also the one before, and all updates offered and not yet used."""
    return {sha256 for state in runs for sha256 in (_of_open(state) if state.open else _of_closed(state))}


def _of_closed(state: RunState) -> Iterator[str]:
    if state.adapter is not None:
        yield state.adapter.sha256


def _of_open(state: RunState) -> Iterator[str]:
    yield from _of_closed(state)
    if state.former is not None:
        yield state.former.sha256
    for member in state.members.values():
        if member.trained is not None:
            yield member.trained.update.sha256
        for entry in member.late:
            yield entry.trained.update.sha256
            yield entry.base.sha256
