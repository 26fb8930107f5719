"""One file per way to write weights and activations in fewer bits."""
