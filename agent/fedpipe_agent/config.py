"""agent.toml: what the owner of a machine says about it, and what of it may be used.

Owns the keys, their defaults and their checks. Whether a path exists or a broker answers is found
out by those who use it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, ValidationInfo, field_validator

from fedpipe_data.source import DatasetSource
from fedpipe_profiles.device import MAX_DATASETS, MIB, DatasetName, Limits
from fedpipe_profiles.settings_file import load_settings
from fedpipe_profiles.values import PositiveSeconds, Settings
from fedpipe_wire.tls import Host, check_insecure
from fedpipe_wire.topics import check_name
from fedpipe_wire.transfer import TransferSection

BITS_PER_MBIT = 1_000_000
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of every day, in minutes since local midnight: from `start` up to, not including, `end`.

    `end` lies before `start` where the part goes over midnight.
    """

    start: int
    end: int

    def contains(self, clock: time) -> bool:
        """Whether `clock`, a local time of day, lies within."""
        minute = clock.hour * 60 + clock.minute
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


def parse_hours(text: str) -> Hours:
    """Read "20:00-06:00".

    Raises:
        ValueError: if it is not of this form, or if both ends are the same time.
    """
    match = _HOURS.fullmatch(text)
    if match is None:
        raise ValueError('should be HH:MM-HH:MM in local time, as in "20:00-06:00"')
    start_hour, start_minute, end_hour, end_minute = match.groups()
    start = int(start_hour) * 60 + int(start_minute)
    end = _DAY_MINUTES if end_hour is None else int(end_hour) * 60 + int(end_minute)
    if start == end:
        raise ValueError("begins and ends at the same time; leave hours out to lend the whole day")
    return Hours(start, end)


def _check_hours(text: str) -> str:
    parse_hours(text)
    return text


def _agent_name(name: str) -> str:
    return check_name(name, "agent name")


def _federation_name(name: str) -> str:
    return check_name(name, "federation name")


ModelName = Annotated[str, Field(min_length=1, max_length=1000)]


class BrokerSettings(Settings):
    """[broker]: the one address that this agent connects to; what is left out, the bundle says."""

    host: Host | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    insecure: bool = Field(default=False, description="no TLS, no keys, no signatures; on loopback only")

    @field_validator("insecure")
    @classmethod
    def _only_on_loopback(cls, insecure: bool, info: ValidationInfo) -> bool:  # noqa: FBT001  # pydantic's signature
        host = info.data.get("host")
        if insecure and host is None:
            raise ValueError("needs broker.host: no bundle says where such a broker is")
        check_insecure(str(host), insecure=insecure)
        return insecure


class LimitSettings(Settings):
    """[limits]: what the owner lends; a key left out lends all that is free."""

    memory_mib: PositiveInt | None = Field(
        default=None, le=1 << 32, description="for one trainer, in MiB of 2^20 bytes"
    )
    threads: PositiveInt | None = Field(default=None, le=1 << 16)
    uplink_mbit: float | None = Field(
        default=None, ge=0.001, le=1e9, description="10^6 bits per second, agent to broker"
    )
    downlink_mbit: float | None = Field(default=None, ge=0.001, le=1e9)
    hours: Annotated[str, AfterValidator(_check_hours)] | None = Field(default=None, description="local time of day")

    def to_limits(self) -> Limits:
        """The limits as a device profile carries them, in bytes and bits per second."""
        return Limits(
            memory_bytes=None if self.memory_mib is None else self.memory_mib * MIB,
            threads=self.threads,
            uplink_bps=None if self.uplink_mbit is None else self.uplink_mbit * BITS_PER_MBIT,
        )

    @property
    def downlink_bps(self) -> float | None:
        """The limit on what this agent receives, in bits per second."""
        return None if self.downlink_mbit is None else self.downlink_mbit * BITS_PER_MBIT


def within_hours(limits: LimitSettings, clock: time) -> bool:
    """Whether the owner lends the machine at `clock`, a local time of day."""
    return limits.hours is None or parse_hours(limits.hours).contains(clock)


class TrainingSettings(Settings):
    """[training]: how this agent runs its trainer process."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: the GPU where there is one")
    idle_s: PositiveSeconds = Field(default=300.0, description="seconds a trainer without work is kept")
    start_s: PositiveSeconds = Field(default=180.0, description="seconds a trainer may take to start")
    hub_models: tuple[ModelName, ...] = Field(default=(), description="may be downloaded from the hub")
    trust_remote_code: tuple[ModelName, ...] = Field(default=(), description="may run the code in their own folders")


class AuditSettings(Settings):
    """[audit]: the record of what leaves the silo."""

    max_mib: PositiveInt = Field(default=64, le=1 << 20, description="size at which a new file is begun")


class AgentSettings(Settings):
    """The whole of agent.toml."""

    name: Annotated[str, AfterValidator(_agent_name)]
    federation: Annotated[str, AfterValidator(_federation_name)] | None = Field(
        default=None, description="left out: the one that this agent has joined"
    )
    state: Path = Field(default=Path("state"), description="folder for identity and outbox")
    broker: BrokerSettings = BrokerSettings()
    datasets: dict[DatasetName, DatasetSource] = Field(default_factory=dict, max_length=MAX_DATASETS)
    models: dict[ModelName, Path] = Field(default_factory=dict, description="a job's model name to a folder here")
    limits: LimitSettings = LimitSettings()
    training: TrainingSettings = TrainingSettings()
    transfer: TransferSection = TransferSection()
    audit: AuditSettings = AuditSettings()

    @field_validator("broker")
    @classmethod
    def _insecure_is_named(cls, broker: BrokerSettings, info: ValidationInfo) -> BrokerSettings:
        if broker.insecure and info.data.get("federation", "") is None:
            raise ValueError("insecure = true needs federation: no bundle says which it is")
        return broker

    def to_limits(self) -> Limits:
        """The owner's limits as a device profile carries them."""
        return self.limits.to_limits()

    def model_location(self, model: str) -> str:
        """Where the trainer finds a job's model: the mapped folder, or the name itself."""
        folder = self.models.get(model)
        return model if folder is None else str(folder)


def load_agent_settings(path: Path, overrides: Sequence[str] = ()) -> AgentSettings:
    """Read agent.toml; relative paths in it are under its own folder.

    Raises:
        SettingsError: with all its problems.
    """
    return load_settings(path, AgentSettings, overrides)
