"""Sets of samples: thousands of images whose every byte depends on the bundle and the settings alone."""
