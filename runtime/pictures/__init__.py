"""From a request to picture files: `run`, its recipe, previews."""
