"""Benchmarks: each script answers one question, compared with a simple implementation and the limits of the machine."""
