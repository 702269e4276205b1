"""One script for each question, measured beside a plain way and what the machine allows: python -m benchmarks.NAME."""
