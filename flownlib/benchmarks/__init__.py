"""How fast this machine trains, stores and generates networks: `python -m flownlib.benchmarks`."""
