"""A blob's chunks as arithmetic: how many, how long, and which of them as bits of one integer.

Owns the geometry and the text form of a bitmap. A set of chunks is a Python integer whose bit i stands for chunk i:
frozen, compared and combined in one operation, and 2 KiB for 4 GiB in chunks of 256 KiB.
"""

import base64
import binascii

from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.topics import MAX_CHUNKS

MAX_CHUNK_BYTES = 1_900_000


class BlobError(Exception):
    """A blob cannot be taken, kept, sent or verified; the message says which and what to do."""


class BlobDiskError(BlobError):
    """This machine's disk does not take or give a blob: full, read-only, or the file is not there."""


def chunk_count(ref: BlobRef) -> int:
    """Number of chunks, at least 1.

    Raises:
        BlobError: if there would be too many, or a chunk too large for one packet.
    """
    if ref.chunk_bytes > MAX_CHUNK_BYTES:
        raise BlobError(
            f"blob {ref.sha256[:12]} has chunks of {ref.chunk_bytes} bytes, at most {MAX_CHUNK_BYTES} fit a packet: "
            "lower the sender's chunk size"
        )
    count = -(-ref.size // ref.chunk_bytes)
    if count > MAX_CHUNKS:
        raise BlobError(
            f"blob {ref.sha256[:12]} of {ref.size} bytes has {count} chunks, at most {MAX_CHUNKS} are taken: "
            "raise the sender's chunk size"
        )
    return count


def check_size(ref: BlobRef, max_bytes: int) -> None:
    """Refuse a blob before anything is reserved for it.

    Raises:
        BlobError: if it is larger than `max_bytes`, or its chunks are not usable.
    """
    if ref.size > max_bytes:
        raise BlobError(f"blob {ref.sha256[:12]} has {ref.size} bytes, at most {max_bytes} are taken")
    chunk_count(ref)


def chunk_span(ref: BlobRef, index: int) -> tuple[int, int]:
    """Offset and length in bytes of one chunk.

    Raises:
        BlobError: if there is no such chunk.
    """
    count = chunk_count(ref)
    if not 0 <= index < count:
        raise BlobError(f"blob {ref.sha256[:12]} has chunks 0 to {count - 1}, chunk {index} is outside")
    offset = index * ref.chunk_bytes
    return offset, min(ref.chunk_bytes, ref.size - offset)


def all_bits(count: int) -> int:
    """The set of all chunks."""
    return (1 << count) - 1


def lowest_bits(bits: int, most: int) -> int:
    """The `most` lowest members of a set."""
    taken = 0
    for _ in range(min(most, bits.bit_count())):
        lowest = bits & -bits
        taken |= lowest
        bits ^= lowest
    return taken


def encode_bitmap(bits: int, count: int) -> str:
    """Text of a set of chunks out of `count`: base64, chunk i is bit i % 8 of byte i // 8, lowest bit first."""
    return base64.b64encode(bits.to_bytes(-(-count // 8), "little")).decode()


def decode_bitmap(text: str, count: int) -> int:
    """The set of chunks that `encode_bitmap` wrote.

    Raises:
        BlobError: if it is not base64, not exactly as long as `count` chunks need, or names a chunk beyond the last.
    """
    expected = -(-count // 8)
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BlobError(f"bitmap is not base64: {error}") from None
    if len(raw) != expected:
        raise BlobError(f"bitmap of {len(raw)} bytes for {count} chunks, it must have exactly {expected}")
    bits = int.from_bytes(raw, "little")
    if bits >> count:
        raise BlobError(f"bitmap names chunk {bits.bit_length() - 1}, the last of {count} chunks is {count - 1}")
    return bits
