"""From updates to the next global adapter: the gate, the rules, and the files that they read and write."""
