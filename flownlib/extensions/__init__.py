"""One idea a file: other encoders, other generators, other networks, other people's checkpoints."""
