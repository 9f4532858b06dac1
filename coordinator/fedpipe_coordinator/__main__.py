"""So that `python -m fedpipe_coordinator` is the command line."""

from fedpipe_coordinator.cli import main

main()
