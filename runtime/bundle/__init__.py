"""A bundle on disk: opened and checked, written, described."""
