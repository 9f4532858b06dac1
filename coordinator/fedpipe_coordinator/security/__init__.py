"""Who belongs to a federation: its authority, its agents' certificates, and the checks of both."""
