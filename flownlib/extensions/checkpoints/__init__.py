"""Checkpoints that anyone wrote → a zoo, and back; tensors are read, pickled code never runs."""
