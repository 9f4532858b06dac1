"""What travels between coordinator and agents: topics, messages, tensors, blobs, and the session that carries them."""
