"""Collecting zoos fast: compiled training, worker processes, torchrun."""
