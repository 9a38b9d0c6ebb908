"""Training: the loop, its state, its checkpoints, and the run that holds them."""
