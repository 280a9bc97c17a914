"""What recording costs: `python -m benchmarks` prints every table, `--write` puts them into docs/performance.md."""
