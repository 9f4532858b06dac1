"""So that `python -m fedpipe_agent` is the command line."""

from fedpipe_agent.cli import main

main()
