"""federation.toml: where the federation is, and what its broker takes.

Owns the keys, their defaults and their checks.
"""

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from fedpipe_coordinator.broker.config import EVERYWHERE, Limits
from fedpipe_profiles.settings_file import load_settings
from fedpipe_profiles.values import Settings
from fedpipe_wire.tls import check_insecure
from fedpipe_wire.topics import check_name
from fedpipe_wire.transfer import TransferSection

MAX_HOST = 253
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\.?")


def _federation_name(name: str) -> str:
    return check_name(name, "federation name")


def _host(text: str) -> str:
    """A name or address as it may stand in a certificate and in a broker's configuration."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if len(text) > MAX_HOST or _HOST.fullmatch(text) is None:
            raise ValueError("should be a host's name or its address, such as broker.example.org or 10.1.2.3") from None
    else:
        if "%" in text:
            raise ValueError("should be an address without a zone")
    return text


def _listen(text: str) -> str:
    return text if text == EVERYWHERE else _host(text)


class BrokerSection(Settings):
    """[broker]: the federation's broker."""

    host: Annotated[str, AfterValidator(_host)] = Field(default="127.0.0.1", description="where agents find it")
    port: int = Field(default=8883, ge=1, le=65535)
    managed: bool = Field(default=True, description="`fedpipe up` starts and stops Mosquitto itself")
    insecure: bool = Field(default=False, description="no TLS, no keys, no signatures; on loopback only")
    listen: Annotated[str, AfterValidator(_listen)] | None = Field(
        default=None, description="address of the managed broker, where it is another than host; * for all"
    )
    max_connections: int = Field(default=256, ge=2, le=1_000_000)
    queue_mib: int = Field(default=256, ge=1, le=1 << 20, description="kept for a session that is slow or away")
    memory_mib: int = Field(default=8192, ge=0, le=1 << 24, description="of the managed broker; 0 for no limit")

    @field_validator("insecure")
    @classmethod
    def _only_on_loopback(cls, insecure: bool, info: ValidationInfo) -> bool:  # noqa: FBT001  # pydantic's signature
        check_insecure(str(info.data.get("host", "")), insecure=insecure)
        return insecure

    @field_validator("listen")
    @classmethod
    def _insecure_listens_on_loopback(cls, listen: str | None, info: ValidationInfo) -> str | None:
        """Raise ValueError where anybody could reach a broker without logins."""
        if listen is not None:
            check_insecure(listen, insecure=bool(info.data.get("insecure")))
        return listen

    def address(self) -> str:
        """What a managed broker listens on."""
        return self.host if self.listen is None else self.listen

    def limits(self) -> Limits:
        """What a broker takes."""
        return Limits(self.max_connections, self.queue_mib, self.memory_mib)


class Federation(Settings):
    """The whole of federation.toml."""

    federation: Annotated[str, AfterValidator(_federation_name)]
    broker: BrokerSection = BrokerSection()
    transfer: TransferSection = TransferSection()


def load_federation(path: Path, overrides: Sequence[str] = ()) -> Federation:
    """Read federation.toml.

    Raises:
        SettingsError: with all its problems.
    """
    return load_settings(path, Federation, overrides)
