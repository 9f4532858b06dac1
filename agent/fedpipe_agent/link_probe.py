"""Measures the link after connecting: a few small publications for the latency, then bursts for the rate.

Owns the order and the times; the daemon sends and tells of acknowledgements. Between bursts it pauses as long as the
owner's uplink limit demands. The bytes go to a blob topic of this agent's own, under a name that nobody asks for.
"""

import statistics
from collections.abc import Callable

from fedpipe_agent.link import link_from_samples
from fedpipe_profiles.device import Link

SMALL_BYTES = 1
BURST_CHUNK_BYTES = 64 * 1024
BURST_CHUNKS = 4
MAX_BURST_CHUNKS = 32
MIN_BURST_ROUND_TRIPS = 4.0
"""A burst that takes fewer round trips mostly waits for its acknowledgement; the next one is twice as long."""
LENT_BURST_S = 0.5
SMALL_COUNT = 5
BURST_COUNT = 4


class LinkProbe:
    """One measurement. `publish(size)` hands that many bytes to the broker and returns a handle, or None."""

    def __init__(self, publish: Callable[[int], int | None], uplink_limit_bps: float | None) -> None:
        self._publish = publish
        self._limit_bps = uplink_limit_bps
        self._rtts: list[float] = []
        self._bursts: list[tuple[int, float]] = []
        self._open: set[int] = set()
        # where the owner lends a part of the line, no burst is worth more than half a second of it
        allowed = MAX_BURST_CHUNKS
        if uplink_limit_bps is not None:
            allowed = max(1, min(allowed, int(uplink_limit_bps * LENT_BURST_S / 8 / BURST_CHUNK_BYTES)))
        self._most_chunks = allowed
        self._chunks = min(BURST_CHUNKS, allowed)
        self._began = 0.0
        self._next_at = 0.0
        self.link: Link | None = None

    def tick(self, now: float) -> None:
        """Send the next publications if it is time for them."""
        if self.link is not None or self._open or now < self._next_at:
            return
        small = len(self._rtts) < SMALL_COUNT
        sizes = [SMALL_BYTES] if small else [BURST_CHUNK_BYTES] * self._chunks
        handles = [self._publish(size) for size in sizes]
        self._began = now
        # A burst of which a part was not taken measures nothing: it is sent again at the next tick.
        self._open = set() if None in handles else {handle for handle in handles if handle is not None}

    def delivered(self, handle: int, now: float) -> None:
        """The broker acknowledged a publication; others than this probe's own are ignored."""
        if handle not in self._open:
            return
        self._open.discard(handle)
        if self._open:
            return
        seconds = max(now - self._began, 1e-6)
        if len(self._rtts) < SMALL_COUNT:
            self._rtts.append(seconds)
            return
        size = BURST_CHUNK_BYTES * self._chunks
        self._bursts.append((size, seconds))
        if self._limit_bps is not None:
            self._next_at = self._began + size * 8 / self._limit_bps
        if seconds < MIN_BURST_ROUND_TRIPS * statistics.median(self._rtts):
            self._chunks = min(2 * self._chunks, self._most_chunks)
        if len(self._bursts) == BURST_COUNT:
            self.link = link_from_samples(self._bursts, self._rtts, uplink_limit_bps=self._limit_bps)

    def lost(self) -> None:
        """The connection went away: what was open is sent again later."""
        self._open.clear()
