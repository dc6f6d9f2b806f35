"""Chat samples, their tokens, and the order in which ranks see them. Needs no MLX."""
