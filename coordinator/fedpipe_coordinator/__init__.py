"""The federation's side: planning, rounds, aggregation, store and command line."""
