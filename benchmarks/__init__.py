"""Speed and memory of the suite, measured against named baselines: `python -m benchmarks`."""
