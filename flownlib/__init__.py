"""FLoWN: flow matching on neural-network weights, as a library small enough to read."""
