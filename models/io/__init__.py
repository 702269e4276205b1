"""Reading and writing trained networks."""
