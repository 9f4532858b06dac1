"""What a step of training costs on a device: bytes at its peak, and seconds."""
