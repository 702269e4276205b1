"""Training of a score network: the loop and its step, checkpoints, EMA, metrics and the directory of a run."""
