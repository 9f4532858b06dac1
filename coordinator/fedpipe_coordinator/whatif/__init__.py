"""`fedpipe plan`: what would each device get, and why; from figures alone, with no agent and no broker."""
