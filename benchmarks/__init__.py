"""Every number that the docs quote, each as a command: `python -m benchmarks.<name>`."""
