"""Files of trained networks: configurations, checkpoints, the published layout, safetensors."""
