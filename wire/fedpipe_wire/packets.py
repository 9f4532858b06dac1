"""What every broker agrees on: how large a packet is, and which topics a pattern matches.

Owns two pure functions that the real and the in-memory session share.
"""

from collections.abc import Mapping

from fedpipe_wire.transport import TransportError

_FIXED_HEADER_BYTES = 5
_PACKET_ID_BYTES = 2
_PROPERTIES_LENGTH_BYTES = 4
_STRING_LENGTH_BYTES = 2


def packet_bytes(topic: str, payload: bytes, properties: Mapping[str, str] | None) -> int:
    """Upper bound of the bytes of a QoS 1 PUBLISH packet (MQTT 5.0, section 3.3), at most 8 above the exact size."""
    size = _FIXED_HEADER_BYTES + _STRING_LENGTH_BYTES + len(topic.encode()) + _PACKET_ID_BYTES
    size += _PROPERTIES_LENGTH_BYTES + len(payload)
    for name, value in (properties or {}).items():
        size += 1 + 2 * _STRING_LENGTH_BYTES + len(name.encode()) + len(value.encode())
    return size


def check_packet(topic: str, payload: bytes, properties: Mapping[str, str] | None, limit_bytes: int | None) -> None:
    """Refuse a publication that the broker would answer by closing the connection.

    Raises:
        TransportError: if the topic has a wildcard or nothing in it, or the packet is larger than `limit_bytes`.
    """
    if not topic or "+" in topic or "#" in topic or "\0" in topic:
        raise TransportError(f"topic {topic[:200]!r} cannot be published to: it is empty or has a wildcard")
    if limit_bytes is None:
        return
    size = packet_bytes(topic, payload, properties)
    if size > limit_bytes:
        raise TransportError(
            f"packet of {size} bytes for {topic[:200]!r}, the limit is {limit_bytes}: send less at once, "
            "or raise the broker's max_packet_size"
        )


def matches(pattern: str, topic: str) -> bool:
    """Whether a subscription pattern matches a topic (MQTT 5.0, section 4.7)."""
    if topic.startswith("$") and pattern[:1] in {"+", "#"}:
        return False
    wanted, given = pattern.split("/"), topic.split("/")
    for place, level in enumerate(wanted):
        if level == "#":
            return True
        if place >= len(given) or level not in {"+", given[place]}:
            return False
    return len(wanted) == len(given)
