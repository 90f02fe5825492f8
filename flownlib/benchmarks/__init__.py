"""Measurements of speed, run by `python -m flownlib.benchmarks`."""
