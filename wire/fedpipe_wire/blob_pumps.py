"""Everything an owner needs to send and receive blobs, under one name."""

from fedpipe_wire.blob_outcomes import BlobArrived, BlobFailed, BlobWanted
from fedpipe_wire.blob_receiver import BlobReceiver
from fedpipe_wire.blob_sender import BlobSender

__all__ = ["BlobArrived", "BlobFailed", "BlobReceiver", "BlobSender", "BlobWanted"]
