"""Cache, settings, results, the notebooks' runner, the command line; it knows no method."""
