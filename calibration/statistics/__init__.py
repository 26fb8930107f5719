"""What activations do along the trajectories of a program."""
