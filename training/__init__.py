"""The loop, checkpoints, EMA and logs."""
