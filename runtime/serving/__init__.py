"""Images for many callers at once: a scheduler of mixed steps, a server around it, sets of samples."""
