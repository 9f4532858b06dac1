"""Why the managed broker cannot be started, each with what to do in its message."""


class BrokerError(Exception):
    """The managed broker cannot be started."""


class BrokerMissingError(BrokerError):
    """There is no Mosquitto on this machine."""


class BrokerTooOldError(BrokerError):
    """The Mosquitto here does not speak MQTT 5 as this system needs it."""


class PortInUseError(BrokerError):
    """Somebody else listens on the port."""


class BrokerDiedError(BrokerError):
    """Mosquitto ended, or did not answer, after it was started; the message has its last words."""
