"""A checkpoint of `train` → a bundle for `runtime`, verified against the checkpoint."""
