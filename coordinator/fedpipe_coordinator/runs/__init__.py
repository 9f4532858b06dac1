"""What a run decides: pure machines of states and events, and what they are made of."""
