"""The workshop for data: from raw text to a training set that one can trust. Runs on the control machine; no MLX."""
