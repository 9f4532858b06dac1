"""The trainer process: the only place of the agent that imports the training stack.

It reads requests on stdin and answers on stdout (`fedpipe_agent.trainer_protocol`); it opens no socket of its own
beyond what fetching a base model from a hub needs, and it knows nothing of brokers, runs' states or outboxes.
"""
