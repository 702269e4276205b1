"""Benchmarks: each script measures one cost and compares it with a simple implementation or a limit of the machine."""
