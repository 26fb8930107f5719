"""The loaded engines of a bundle and the loops that run a program on them."""
