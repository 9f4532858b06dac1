"""Where an agent finds its federation: what agent.toml says of it, and what the bundle that was joined does.

Pure. A stated federation must be the one that was joined; a stated host or port counts before the bundle's.
"""

from dataclasses import dataclass

from fedpipe_agent.config import AgentSettings
from fedpipe_agent.errors import ForeignBundleError
from fedpipe_wire.enrolment import Bundle

INSECURE_PORT = 1883


@dataclass(frozen=True, slots=True)
class Address:
    """The one address that an agent connects to, and the federation that it is there for."""

    federation: str
    host: str
    port: int


def address_of(settings: AgentSettings, bundle: Bundle | None) -> Address:
    """Where to connect to.

    Args:
        settings: agent.toml.
        bundle: what was joined; None for a broker without keys, of which the settings say all.

    Raises:
        ForeignBundleError: if another federation was joined than the settings name.
    """
    broker = settings.broker
    if bundle is None:
        assert settings.federation is not None, "the settings were checked"
        assert broker.host is not None, "the settings were checked"
        return Address(settings.federation, broker.host, broker.port or INSECURE_PORT)
    if settings.federation not in (None, bundle.federation):
        raise ForeignBundleError(
            f"this agent has joined federation {bundle.federation!r}, agent.toml says {settings.federation!r}: "
            "correct it, or leave the key out"
        )
    return Address(bundle.federation, broker.host or bundle.host, broker.port or bundle.port)
