"""Errors, options, seeds, files, devices, signals and processes, for all packages; imports none of them."""
