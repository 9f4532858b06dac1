"""From what devices measured and what weights contribute to the plans that make the most of both."""
