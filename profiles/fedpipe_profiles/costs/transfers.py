"""The time of transfers: a link's latency and rates, refined by what the rounds' transfers really took.

A profile's link was measured once, by bursts. A round's transfer also carries messages, chunks that are asked for, and
their checks; so each direction is a line, seconds over bytes, that begins at the profile's figures. Where the profile
now has another link than a transfer went over, its bytes are taken to last as much longer or shorter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedpipe_profiles.costs.fit import Expected, Line, Point, follow_line
from fedpipe_profiles.device import DeviceProfile
from fedpipe_profiles.plan import TransferMeasurement

UNMEASURED_UPLINK_BPS = 20e6
UNMEASURED_DOWNLINK_BPS = 100e6
UNMEASURED_LATENCY_S = 0.1

_RELATIVE_SD = 0.05
_NOISE_S = 0.02
_HANDLING_S = 0.1
"""Beside the bytes: messages, naming and checking the file, and the waits between."""


@dataclass(frozen=True, slots=True)
class TransferModel:
    """Seconds of a transfer: what each one costs, and what each of its bytes costs."""

    down_s: float
    down_byte_s: float
    up_s: float
    up_byte_s: float

    def download_s(self, size_bytes: float) -> float:
        """Seconds from a task's receipt until an adapter of that size is there."""
        return self.down_s + self.down_byte_s * size_bytes

    def upload_s(self, size_bytes: float) -> float:
        """Seconds from the end of training until an update of that size is acknowledged."""
        return self.up_s + self.up_byte_s * size_bytes


def fit_transfers(profile: DeviceProfile, measurements: Sequence[TransferMeasurement] = ()) -> TransferModel:
    """The transfers of one agent, measured rounds oldest first; those of the profile's link until there are any.

    No update is expected to be faster than what the owner lends of the uplink.
    """
    link, lent = profile.link, profile.limits.uplink_bps
    up_bps = UNMEASURED_UPLINK_BPS if link is None else link.uplink_bps
    down_bps = UNMEASURED_DOWNLINK_BPS if link is None else link.downlink_bps
    latency_s = UNMEASURED_LATENCY_S if link is None else link.latency_s
    down = _line([(m.down_bytes, m.down_s, m.downlink_bps) for m in measurements], latency_s, down_bps)
    most_bps = math.inf if lent is None else lent
    sent = [(m.up_bytes, m.up_s, m.uplink_bps and min(m.uplink_bps, most_bps)) for m in measurements]
    up = _line(sent, latency_s, min(up_bps, most_bps))
    if lent is not None:
        up = Line(max(up.slope, 8 / lent), up.intercept)
    return TransferModel(down.intercept, down.slope, up.intercept, up.slope)


def _line(transfers: Sequence[tuple[int, float, float | None]], latency_s: float, bps: float) -> Line:
    """Seconds over bytes: the link's own until a transfer was measured; each with the rate of its link, if known."""
    link = Line(8 / bps, latency_s)
    expected = Line(link.slope, latency_s + _HANDLING_S)
    points = [
        Point(float(size), _over(seconds, then, bps, expected.intercept), _RELATIVE_SD + _NOISE_S / expected.at(size))
        for size, seconds, then in reversed(transfers)
        if size > 0
    ]
    return follow_line(points, Expected(expected, 1.0, 1.0)) if points else link


def _over(seconds: float, then_bps: float | None, now_bps: float, beside_s: float) -> float:
    """What a transfer of a link of another rate would take now; what it takes beside its bytes stays."""
    if then_bps is None or then_bps == now_bps:
        return seconds
    beside_s = min(seconds, beside_s)
    return beside_s + (seconds - beside_s) * then_bps / now_bps
