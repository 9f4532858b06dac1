"""The federation's record of who did what, and the commands that check records."""
