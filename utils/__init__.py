"""Errors, seeds, files, devices, signals and processes: what every package may use, and what knows none of them."""
