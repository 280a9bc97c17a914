"""What other tools make of the same steps: `python -m benchmarks.peers` prints one table a model, side by side."""
