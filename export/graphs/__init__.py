"""Networks as the graphs of a bundle."""
