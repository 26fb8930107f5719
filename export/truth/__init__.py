"""What PyTorch computes: golden trajectories."""
