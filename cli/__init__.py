"""Code shared by the command-line entry points: Hydra set-up, options, launching."""
