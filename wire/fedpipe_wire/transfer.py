"""The settings of blob transfers that an owner may change, the same in federation.toml and agent.toml.

Owns the keys and their limits; what they mean is decided in `blobs.py`.
"""

from pydantic import Field, PositiveInt

from fedpipe_profiles.values import PositiveSeconds, Settings
from fedpipe_wire.blob_bits import MAX_CHUNK_BYTES
from fedpipe_wire.blobs import BlobSettings

KIB = 1024


class TransferSection(Settings):
    """[transfer]: how adapters and updates travel."""

    chunk_kib: int = Field(
        default=256, ge=1, le=MAX_CHUNK_BYTES // KIB, description="size of the chunks sent from here"
    )
    window: PositiveInt = Field(default=4, le=1024, description="chunks sent and not yet acknowledged by the broker")
    silence_s: PositiveSeconds = Field(default=120.0, description="a transfer without a new chunk ends after this")

    def to_settings(self, *, uplink_bps: float | None = None) -> BlobSettings:
        """The settings of the machines.

        `uplink_bps` makes the chunks smaller where one would hold a slow line for longer than half a second, and asks
        again often enough within `silence_s`.
        """
        chunk_bytes = self.chunk_kib * KIB
        if uplink_bps is not None:
            chunk_bytes = max(min(16 * KIB, chunk_bytes), min(chunk_bytes, int(uplink_bps / 16)))
        return BlobSettings(
            chunk_bytes=chunk_bytes,
            window=self.window,
            silence_s=self.silence_s,
            idle_s=min(BlobSettings().idle_s, self.silence_s / 4),
            uplink_bps=uplink_bps,
        )
