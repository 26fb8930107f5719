"""diffusers' schedulers, probed into programs."""
