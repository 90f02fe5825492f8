"""Flow matching on neural-network weights, small enough to read."""
