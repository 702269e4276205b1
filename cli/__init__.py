"""What the command-line entry points share."""
