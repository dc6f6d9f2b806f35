"""Flotilla's trainer: data-parallel LoRA on MLX, with exact gradient averaging.

The rooms, left to right in the direction of the data, are described in docs/architecture.md.
"""

__version__ = "0.1.0"
